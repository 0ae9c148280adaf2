//! The objects by which a worker describes its models in its own list of models.
//!
//! They are kept beside the snapshots, because some engines make parts of them anew for each request (`created`,
//! `permission[].id`): a change of an object must not build a snapshot.

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use smg_types::ids::ModelId;

/// Largest object of one model, in bytes of JSON. A larger one loses its largest fields.
pub const MAX_OBJECT_BYTES: usize = 8 << 10;
/// Largest sum of the objects of one worker, in bytes of JSON. Models beyond it are listed without an object.
pub const MAX_OBJECTS_BYTES: usize = 512 << 10;

/// The objects of a worker's models, by the model's id.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ModelObjects {
    objects: BTreeMap<ModelId, Map<String, Value>>,
    bytes: usize,
}

impl ModelObjects {
    /// Keeps the object of a model, unless it has one. The object and the sum of all objects stay within their bounds.
    pub fn insert(&mut self, model: ModelId, mut object: Map<String, Value>) {
        if self.objects.contains_key(&model) {
            return;
        }
        let bytes = bound(&mut object);
        if self.bytes + bytes <= MAX_OBJECTS_BYTES {
            self.bytes += bytes;
            self.objects.insert(model, object);
        }
    }

    /// The object of a model.
    #[must_use]
    pub fn of(&self, model: &ModelId) -> Option<&Map<String, Value>> {
        self.objects.get(model)
    }

    /// Replaces `before`, the objects that the same worker gave earlier. The earliest `created` of a model stays, because
    /// some engines answer with the time of the request.
    pub(super) fn replace(mut self, before: &Self) -> Self {
        for (model, object) in &mut self.objects {
            let earlier = before.of(model).and_then(|before| before.get("created"));
            if let (Some(earlier), Some(created)) = (earlier, object.get_mut("created"))
                && let (Some(before), Some(now)) = (earlier.as_f64(), created.as_f64())
                && before < now
            {
                created.clone_from(earlier);
            }
        }
        self
    }
}

/// Removes the largest fields until the object is within its bound. Returns its size.
fn bound(object: &mut Map<String, Value>) -> usize {
    // Name and value, with two quotes, a colon and a comma.
    let size = |name: &str, value: &Value| name.len() + value.to_string().len() + 4;
    let mut sizes: Vec<(usize, String)> =
        object.iter().map(|(name, value)| (size(name, value), name.clone())).collect();
    sizes.sort_unstable();
    let mut bytes = sizes.iter().map(|(bytes, _)| bytes).sum::<usize>() + 2;
    while bytes > MAX_OBJECT_BYTES
        && let Some((largest, name)) = sizes.pop()
    {
        object.remove(&name);
        bytes -= largest;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        let Value::Object(object) = value else { panic!("{value} is no object") };
        object
    }

    #[test]
    fn the_earliest_creation_stays() {
        let of = |created: Value| {
            let mut objects = ModelObjects::default();
            objects.insert("m".into(), object(json!({ "id": "m", "created": created })));
            objects
        };
        for (before, now, kept) in [(5, 9, 5), (9, 5, 5)] {
            assert_eq!(of(now.into()).replace(&of(before.into())), of(kept.into()));
        }
        assert_eq!(of(json!("today")).replace(&of(5.into())), of(json!("today")));
    }

    #[test]
    fn objects_are_bounded_one_by_one_and_in_sum() {
        let mut objects = ModelObjects::default();
        let long = "x".repeat(MAX_OBJECT_BYTES);
        objects.insert("m".into(), object(json!({ "id": "m", "max_model_len": 7, "note": long })));
        let kept = objects.of(&"m".into()).unwrap();
        assert_eq!(*kept, object(json!({ "id": "m", "max_model_len": 7 })));
        for number in 0..1000 {
            let id = format!("m{number}");
            let note = "x".repeat(MAX_OBJECT_BYTES / 2);
            objects.insert(id.as_str().into(), object(json!({ "id": id, "note": note })));
        }
        let kept: usize =
            objects.objects.values().map(|o| Value::from(o.clone()).to_string().len()).sum();
        assert!(kept <= MAX_OBJECTS_BYTES, "{kept} bytes");
        assert!(objects.of(&"m50".into()).is_some() && objects.of(&"m999".into()).is_none());
    }
}
