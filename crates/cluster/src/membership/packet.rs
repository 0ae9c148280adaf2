//! foca's packets in bytes: bincode with a limit, each item after its length.
//!
//! The length lets a later minor version append fields to an item: fields that this version does not know are skipped.
//! Nothing is written unless the whole item fits, because foca fills a packet up to the first item that does not.

use bytes::{Buf, BufMut};
use foca::{Codec, Header, Member};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::codec;
use crate::membership::identity::Identity;

/// Longest item in bytes: a header with three identities of the longest names.
const MAX_ITEM_BYTES: usize = 1024;

/// Encodes and decodes foca's headers and members.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct PacketCodec;

/// An item that could not be encoded or decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum PacketError {
    #[error("item of {needed} bytes does not fit the {left} that are left")]
    Full { needed: usize, left: usize },
    #[error("item is longer than {MAX_ITEM_BYTES} bytes")]
    TooLong,
    #[error("packet ends within an item")]
    Truncated,
    #[error("{0}")]
    Payload(codec::PayloadError),
    #[error("identity {0} has an implausible claim")]
    Implausible(Identity),
}

impl PacketCodec {
    fn write(item: &impl Serialize, mut buf: impl BufMut) -> Result<(), PacketError> {
        let bytes = codec::encode(item);
        let length = u16::try_from(bytes.len()).ok().filter(|n| usize::from(*n) <= MAX_ITEM_BYTES);
        let Some(length) = length else { return Err(PacketError::TooLong) };
        let (needed, left) = (bytes.len() + 2, buf.remaining_mut());
        if left < needed {
            return Err(PacketError::Full { needed, left });
        }
        buf.put_u16(length);
        buf.put_slice(&bytes);
        Ok(())
    }

    fn read<T: DeserializeOwned>(mut buf: impl Buf) -> Result<T, PacketError> {
        if buf.remaining() < 2 {
            return Err(PacketError::Truncated);
        }
        let length = usize::from(buf.get_u16());
        if length > MAX_ITEM_BYTES {
            return Err(PacketError::TooLong);
        }
        if buf.remaining() < length {
            return Err(PacketError::Truncated);
        }
        let item = codec::decode(&buf.chunk()[..length]).map_err(PacketError::Payload)?;
        buf.advance(length);
        Ok(item)
    }
}

fn plausible(identity: &Identity) -> Result<(), PacketError> {
    if identity.is_plausible() { Ok(()) } else { Err(PacketError::Implausible(identity.clone())) }
}

impl Codec<Identity> for PacketCodec {
    type Error = PacketError;

    fn encode_header(
        &mut self,
        header: &Header<Identity>,
        buf: impl BufMut,
    ) -> Result<(), PacketError> {
        Self::write(header, buf)
    }

    fn decode_header(&mut self, buf: impl Buf) -> Result<Header<Identity>, PacketError> {
        let header: Header<Identity> = Self::read(buf)?;
        plausible(&header.src)?;
        Ok(header)
    }

    fn encode_member(
        &mut self,
        member: &Member<Identity>,
        buf: impl BufMut,
    ) -> Result<(), PacketError> {
        Self::write(member, buf)
    }

    fn decode_member(&mut self, buf: impl Buf) -> Result<Member<Identity>, PacketError> {
        let member: Member<Identity> = Self::read(buf)?;
        plausible(member.id())?;
        Ok(member)
    }
}

#[cfg(test)]
mod tests {
    use foca::{Message, State};
    use proptest::prelude::*;

    use super::*;
    use smg_types::ids::Generation;

    fn identity(name: &str, generation: u64) -> Identity {
        Identity {
            name: name.parse().unwrap(),
            generation: Generation(generation),
            renewal: 3,
            address: "[fd00::1]:39527".parse().unwrap(),
        }
    }

    #[test]
    fn the_longest_names_fit_an_item() {
        let long = "n".repeat(smg_types::ids::NodeName::MAX_BYTES);
        let header = Header {
            src: identity(&long, 1 << 61),
            src_incarnation: 9,
            dst: identity(&long, 1 << 61),
            message: Message::PingReq { target: identity(&long, 1 << 61), probe_number: 200 },
        };
        let mut bytes = Vec::new();
        PacketCodec.encode_header(&header, &mut bytes).unwrap();
        assert_eq!(PacketCodec.decode_header(&bytes[..]).unwrap(), header);
    }

    #[test]
    fn an_item_that_does_not_fit_leaves_the_buffer_clean() {
        let member = Member::new(identity("a", 1), 2, State::Suspect);
        let mut bytes = Vec::new();
        let mut tight = (&mut bytes).limit(10);
        assert!(matches!(
            PacketCodec.encode_member(&member, &mut tight),
            Err(PacketError::Full { left: 10, .. })
        ));
        assert!(bytes.is_empty());
    }

    #[test]
    fn an_implausible_claim_is_refused() {
        let mut bytes = Vec::new();
        PacketCodec.encode_member(&Member::alive(identity("a", u64::MAX)), &mut bytes).unwrap();
        assert!(matches!(PacketCodec.decode_member(&bytes[..]), Err(PacketError::Implausible(_))));
    }

    #[test]
    fn reading_takes_exactly_one_item() {
        let (a, b) = (Member::alive(identity("a", 1)), Member::down(identity("b", 2)));
        let mut bytes = Vec::new();
        PacketCodec.encode_member(&a, &mut bytes).unwrap();
        PacketCodec.encode_member(&b, &mut bytes).unwrap();
        let mut rest = &bytes[..];
        assert_eq!(PacketCodec.decode_member(&mut rest).unwrap(), a);
        assert_eq!(PacketCodec.decode_member(&mut rest).unwrap(), b);
        assert!(rest.is_empty());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            drop(PacketCodec.decode_header(&bytes[..]));
            drop(PacketCodec.decode_member(&bytes[..]));
        }
    }
}
