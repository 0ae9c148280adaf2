//! Changes of the shared keys, sent from one router to the others.
//!
//! A change is sent encrypted with a key that is shared already, or inside mutual TLS. A router accepts it only from a
//! sender that proves one of the two, and refuses it in plain text.

use bytes::Bytes;
use prost::Message as _;

use super::seal::{KEY_BYTES, KeyId, Opener, Sealer, SharedKey};
use super::security::{KeyChange, Security};
use super::wire::proto::{self, Envelope, KeyAnswer, envelope::Content, key_change::Change};

/// The message that carries a change; `None` if there is no key to encrypt it with.
pub(super) fn change_envelope(
    security: &Security,
    sealer: Option<&mut Sealer>,
    change: &KeyChange,
) -> Option<Envelope> {
    let change = match change {
        KeyChange::Install(key) => Change::Install(Bytes::copy_from_slice(key.bytes())),
        KeyChange::Use(id) => Change::Use(id.0),
        KeyChange::Remove(id) => Change::Remove(id.0),
    };
    let change = proto::KeyChange { change: Some(change) };
    match sealer {
        Some(sealer) => security.enclose(Some(sealer), change.encode_to_vec().into()),
        None if security.tls().is_some() => {
            Some(Envelope { content: Some(Content::KeyChange(change)) })
        }
        None => None,
    }
}

/// The change in a message. `secure` says whether the message was received inside mutual TLS.
pub(super) fn read_change(
    security: &Security,
    opener: Option<&mut Opener>,
    message: Option<Envelope>,
    secure: bool,
) -> Result<KeyChange, String> {
    let message = message.ok_or("the stream ended before a change was received")?;
    let change = match message.content {
        Some(Content::KeyChange(change)) if secure => change,
        Some(Content::Sealed(_)) => {
            let bytes = security
                .disclose(opener, message)
                .map_err(|error| error.to_string())?
                .ok_or("the message contains no change")?;
            proto::KeyChange::decode(bytes).map_err(|error| error.to_string())?
        }
        _ => return Err("a change of keys is accepted only encrypted or inside TLS".to_owned()),
    };
    match change.change.ok_or("the change is of a kind that this router does not know")? {
        Change::Install(key) => {
            let bytes: [u8; KEY_BYTES] =
                (*key).try_into().map_err(|_| format!("the key is not {KEY_BYTES} bytes long"))?;
            Ok(KeyChange::Install(SharedKey::new(bytes)))
        }
        Change::Use(id) => Ok(KeyChange::Use(KeyId(id))),
        Change::Remove(id) => Ok(KeyChange::Remove(KeyId(id))),
    }
}

/// Applies the change to the ring, and returns the ids of its keys.
pub(super) fn apply(
    security: &Security,
    change: Result<KeyChange, String>,
) -> Result<Vec<KeyId>, String> {
    security.change(&change?).map_err(|error| error.to_string())?;
    Ok(security.ring().ids().collect())
}

/// The message that carries the answer. It contains only ids of keys, so it is not secret. It is encrypted if possible,
/// so that no other router can forge it.
pub(super) fn answer_envelope(
    security: &Security,
    sealer: Option<&mut Sealer>,
    answer: Result<Vec<KeyId>, String>,
) -> Option<Envelope> {
    let answer = match answer {
        Ok(ids) => {
            KeyAnswer { error: String::new(), key_ids: ids.into_iter().map(|id| id.0).collect() }
        }
        Err(error) => KeyAnswer { error, key_ids: Vec::new() },
    };
    match sealer {
        Some(sealer) => security.enclose(Some(sealer), answer.encode_to_vec().into()),
        None => Some(Envelope { content: Some(Content::KeyAnswer(answer)) }),
    }
}

/// The answer of another router to a change: the ids of its keys, or why it refused.
pub(super) fn read_answer(
    security: &Security,
    opener: Option<&mut Opener>,
    message: Option<Envelope>,
) -> Result<Vec<KeyId>, String> {
    let message = message.ok_or("the stream ended before an answer was received")?;
    let answer = match message.content {
        Some(Content::KeyAnswer(answer)) => answer,
        _ => {
            let bytes = security
                .disclose(opener, message)
                .map_err(|error| error.to_string())?
                .ok_or("the message contains no answer")?;
            KeyAnswer::decode(bytes).map_err(|error| error.to_string())?
        }
    };
    if answer.error.is_empty() {
        Ok(answer.key_ids.into_iter().map(KeyId).collect())
    } else {
        Err(answer.error)
    }
}
