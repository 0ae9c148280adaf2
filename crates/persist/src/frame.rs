//! The bytes of files: a header that names format, kind and key, then frames with a checksum each.
//!
//! ```text
//! header   magic "smgj" · format u16 · kind u8 · 0 · epoch u64 · base u64 · key id [8] · checksum u64
//! frame    kind u8 · length u32 · number u64 · checksum u64 · payload
//! payload  sealed or plain: for each key, its length u32, the key, the length of the value u32 (all bits set: removed), the value
//! ```
//!
//! Numbers are little-endian. The checksum is XXH3 over all other bytes of the header or frame, so that a length that has
//! changed is found before it is used.

use xxhash_rust::xxh3::Xxh3;

use crate::seal::{KeyId, NO_KEY, Seal};

/// The version of the format that this router writes, and the only one that it reads.
pub(crate) const FORMAT: u16 = 1;
const MAGIC: &[u8; 4] = b"smgj";
pub(crate) const HEADER_BYTES: usize = 40;
pub(crate) const FRAME_BYTES: usize = 21;
const REMOVED: u32 = u32::MAX;

/// What a file contains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileKind {
    Snapshot = 1,
    Log = 2,
    Slot = 3,
}

/// What a frame contains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FrameKind {
    /// A batch of a log.
    Batch = 1,
    /// Some keys of a snapshot.
    Part = 2,
    /// The end of a snapshot, without a payload. A snapshot without it is not finished.
    End = 3,
    /// The value of a slot.
    Value = 4,
}

/// The header of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) kind: FileKind,
    /// The number in the names of a snapshot and its log.
    pub(crate) epoch: u64,
    /// The number of the last batch before the first frame of the file.
    pub(crate) base: u64,
    pub(crate) key: KeyId,
}

/// Why a header can't be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BadHeader {
    /// It is torn or damaged.
    Damaged,
    /// Another version of smg has written it.
    Format(u16),
}

impl Header {
    pub(crate) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..4].copy_from_slice(MAGIC);
        bytes[4..6].copy_from_slice(&FORMAT.to_le_bytes());
        bytes[6] = self.kind as u8;
        bytes[8..16].copy_from_slice(&self.epoch.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.base.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.key);
        let sum = checksum(&[&bytes[..32]]);
        bytes[32..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, BadHeader> {
        let header = bytes.get(..HEADER_BYTES).ok_or(BadHeader::Damaged)?;
        if &header[..4] != MAGIC || u64_at(header, 32) != checksum(&[&header[..32]]) {
            return Err(BadHeader::Damaged);
        }
        let format = u16::from_le_bytes([header[4], header[5]]);
        let kind = match header[6] {
            _ if format != FORMAT => return Err(BadHeader::Format(format)),
            1 => FileKind::Snapshot,
            2 => FileKind::Log,
            3 => FileKind::Slot,
            _ => return Err(BadHeader::Damaged),
        };
        let mut key = NO_KEY;
        key.copy_from_slice(&header[24..32]);
        Ok(Self { kind, epoch: u64_at(header, 8), base: u64_at(header, 16), key })
    }

    /// What is authenticated with a sealed frame of this file.
    fn place(&self, kind: FrameKind, number: u64) -> [u8; 18] {
        let mut place = [0; 18];
        place[0] = self.kind as u8;
        place[1] = kind as u8;
        place[2..10].copy_from_slice(&self.epoch.to_le_bytes());
        place[10..].copy_from_slice(&number.to_le_bytes());
        place
    }

    /// A whole frame. `plain` is sealed if there is a seal.
    pub(crate) fn frame(
        &self,
        kind: FrameKind,
        number: u64,
        plain: Vec<u8>,
        seal: Option<&dyn Seal>,
    ) -> Vec<u8> {
        let payload = match seal {
            Some(seal) => seal.seal(&self.place(kind, number), &plain),
            None => plain,
        };
        let length = u32::try_from(payload.len()).expect("a payload is shorter than 4 GiB");
        let mut bytes = Vec::with_capacity(FRAME_BYTES + payload.len());
        bytes.push(kind as u8);
        bytes.extend(length.to_le_bytes());
        bytes.extend(number.to_le_bytes());
        let sum = checksum(&[&bytes, &payload]);
        bytes.extend(sum.to_le_bytes());
        bytes.extend(payload);
        bytes
    }
}

/// A frame that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: FrameKind,
    pub(crate) number: u64,
    pub(crate) plain: Vec<u8>,
}

/// Why the next frame can't be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BadFrame {
    /// It is torn or damaged.
    Damaged,
    /// It is whole, and no key opens it.
    Sealed,
}

/// Reads the frames of a file, one after the other.
#[derive(Debug)]
pub(crate) struct Frames<'a> {
    header: Header,
    bytes: &'a [u8],
    seal: Option<&'a dyn Seal>,
}

impl<'a> Frames<'a> {
    /// Reads the header of `bytes`.
    pub(crate) fn of(bytes: &'a [u8], seal: Option<&'a dyn Seal>) -> Result<Self, BadHeader> {
        let header = Header::decode(bytes)?;
        Ok(Self { header, bytes: &bytes[HEADER_BYTES..], seal })
    }

    pub(crate) fn header(&self) -> Header {
        self.header
    }

    /// How many bytes are left to read.
    pub(crate) fn rest(&self) -> usize {
        self.bytes.len()
    }

    /// The next frame; `None` at the end of the file.
    pub(crate) fn next(&mut self) -> Option<Result<Frame, BadFrame>> {
        if self.bytes.is_empty() {
            return None;
        }
        Some(self.read())
    }

    fn read(&mut self) -> Result<Frame, BadFrame> {
        let head = self.bytes.get(..FRAME_BYTES).ok_or(BadFrame::Damaged)?;
        let length = u32::from_le_bytes([head[1], head[2], head[3], head[4]]) as usize;
        let payload = self.bytes[FRAME_BYTES..].get(..length).ok_or(BadFrame::Damaged)?;
        if u64_at(head, 13) != checksum(&[&head[..13], payload]) {
            return Err(BadFrame::Damaged);
        }
        let kind = match head[0] {
            1 => FrameKind::Batch,
            2 => FrameKind::Part,
            3 => FrameKind::End,
            4 => FrameKind::Value,
            _ => return Err(BadFrame::Damaged),
        };
        let number = u64_at(head, 5);
        let plain = if self.header.key == NO_KEY {
            payload.to_vec()
        } else {
            let place = self.header.place(kind, number);
            let opened = self.seal.and_then(|seal| seal.open(self.header.key, &place, payload));
            opened.ok_or(BadFrame::Sealed)?
        };
        self.bytes = &self.bytes[FRAME_BYTES + length..];
        Ok(Frame { kind, number, plain })
    }
}

/// Appends one key with its value to a payload.
pub(crate) fn push_entry(payload: &mut Vec<u8>, key: &[u8], value: Option<&[u8]>) {
    let length = |bytes: &[u8]| {
        let length = u32::try_from(bytes.len()).ok().filter(|length| *length != REMOVED);
        length.expect("a key or a value is shorter than 4 GiB").to_le_bytes()
    };
    payload.extend(length(key));
    payload.extend(key);
    match value {
        Some(value) => {
            payload.extend(length(value));
            payload.extend(value);
        }
        None => payload.extend(REMOVED.to_le_bytes()),
    }
}

/// A key, with its value unless it is removed.
pub(crate) type Entry = (Vec<u8>, Option<Vec<u8>>);

/// The keys and values of a payload; `None` if it is none.
pub(crate) fn entries(mut payload: &[u8]) -> Option<Vec<Entry>> {
    let mut entries = Vec::new();
    while !payload.is_empty() {
        let length = take_u32(&mut payload)?;
        let key = take(&mut payload, length)?;
        let value = match take_u32(&mut payload)? {
            REMOVED => None,
            length => Some(take(&mut payload, length)?),
        };
        entries.push((key, value));
    }
    Some(entries)
}

fn take(bytes: &mut &[u8], length: u32) -> Option<Vec<u8>> {
    let (taken, rest) = bytes.split_at_checked(length as usize)?;
    *bytes = rest;
    Some(taken.to_vec())
}

fn take_u32(bytes: &mut &[u8]) -> Option<u32> {
    let (taken, rest) = bytes.split_first_chunk::<4>()?;
    *bytes = rest;
    Some(u32::from_le_bytes(*taken))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(number)
}

fn checksum(parts: &[&[u8]]) -> u64 {
    let mut hash = Xxh3::with_seed(u64::from(FORMAT));
    for part in parts {
        hash.update(part);
    }
    hash.digest()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEADER: Header = Header { kind: FileKind::Log, epoch: 7, base: 9, key: NO_KEY };

    fn file(batches: &[Vec<Entry>]) -> Vec<u8> {
        let mut bytes = HEADER.encode().to_vec();
        for (batch, number) in batches.iter().zip(10..) {
            let mut payload = Vec::new();
            for (key, value) in batch {
                push_entry(&mut payload, key, value.as_deref());
            }
            bytes.extend(HEADER.frame(FrameKind::Batch, number, payload, None));
        }
        bytes
    }

    fn read(bytes: &[u8]) -> Vec<Vec<Entry>> {
        let Ok(mut frames) = Frames::of(bytes, None) else { return Vec::new() };
        let mut batches = Vec::new();
        while let Some(Ok(frame)) = frames.next() {
            batches.push(entries(&frame.plain).unwrap());
        }
        batches
    }

    fn batches() -> impl Strategy<Value = Vec<Vec<Entry>>> {
        let bytes = || prop::collection::vec(any::<u8>(), 0..20);
        let entry = (bytes(), prop::option::of(bytes()));
        prop::collection::vec(prop::collection::vec(entry, 0..4), 0..5)
    }

    /// A later version of the router must read these bytes.
    #[test]
    fn a_file_has_the_bytes_of_format_1() {
        let bytes = file(&[vec![(b"k".to_vec(), Some(b"v".to_vec())), (b"gone".to_vec(), None)]]);
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            hex,
            "736d676a01000200070000000000000009000000000000000000000000000000fe2b0af5c200f59801160000000a00000000000000446fc2f4e1a796f7010000006b010000007604000000676f6e65ffffffff"
        );
    }

    #[test]
    fn another_format_is_distinguished_from_damage() {
        let mut bytes = HEADER.encode();
        bytes[4] = 9;
        assert_eq!(Header::decode(&bytes), Err(BadHeader::Damaged), "the checksum counts first");
        let sum = checksum(&[&bytes[..32]]);
        bytes[32..].copy_from_slice(&sum.to_le_bytes());
        assert_eq!(Header::decode(&bytes), Err(BadHeader::Format(9)));
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(batches in batches()) {
            prop_assert_eq!(read(&file(&batches)), batches);
        }

        #[test]
        fn a_torn_file_has_a_prefix_of_the_batches(batches in batches(), cut in any::<prop::sample::Index>()) {
            let bytes = file(&batches);
            let found = read(&bytes[..cut.index(bytes.len())]);
            prop_assert_eq!(&batches[..found.len()], &found[..]);
        }

        #[test]
        fn a_flipped_bit_ends_the_file(batches in batches(), at in any::<prop::sample::Index>(), bit in 0..8u8) {
            let mut bytes = file(&batches);
            let at = at.index(bytes.len());
            bytes[at] ^= 1u8 << bit;
            let found = read(&bytes);
            prop_assert!(found.len() < batches.len() || at < HEADER_BYTES);
            prop_assert_eq!(&batches[..found.len()], &found[..]);
        }

        #[test]
        fn hostile_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut whole = HEADER.encode().to_vec();
            whole.extend(&bytes);
            drop(read(&whole));
            drop(read(&bytes));
            drop(entries(&bytes));
        }
    }
}
