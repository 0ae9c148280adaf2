//! The answers without generated text: embeddings, ranks, classes, scores, moderations, tokens, images, sound.
//!
//! All numbers are derived from hashes of the input, so that equal requests get equal answers.

use serde_json::value::RawValue;
use serde_json::{Value, json};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::answer::Facts;
use crate::ask::{self, Ask};
use crate::config::MAX_MODEL_TOKENS;

/// The number of dimensions of an embedding, unless the request sets it.
const DIMENSIONS: usize = 8;
/// The most dimensions that a request may ask for.
const MAX_DIMENSIONS: usize = 4096;
/// The most images that a request may ask for.
const MAX_IMAGES: usize = 10;
/// One transparent pixel, as PNG in base 64.
const PIXEL: &str = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg==";

/// Answers OpenAI's `/v1/embeddings`.
pub(super) fn embeddings(ask: &Ask<'_>, facts: &Facts<'_>) -> Result<Value, String> {
    let dimensions = ask.dimensions.unwrap_or(DIMENSIONS);
    if !(1..=MAX_DIMENSIONS).contains(&dimensions) {
        return Err(format!("dimensions {dimensions} is not in 1..={MAX_DIMENSIONS}"));
    }
    let base64 = ask.encoding_format.as_deref() == Some("base64");
    let inputs = required(ask.input, "input")?;
    let data: Vec<Value> = inputs
        .iter()
        .enumerate()
        .map(|(index, input)| {
            let vector = vector(input, dimensions);
            let embedding = if base64 {
                let bytes: Vec<u8> =
                    vector.iter().flat_map(|number| number.to_le_bytes()).collect();
                json!(to_base64(&bytes))
            } else {
                json!(vector)
            };
            json!({ "object": "embedding", "index": index, "embedding": embedding })
        })
        .collect();
    Ok(json!({ "object": "list", "data": data, "model": model(facts), "usage": usage(facts) }))
}

/// Answers `/rerank` and `/v1/rerank`, with the most relevant document first.
pub(super) fn rerank(ask: &Ask<'_>, facts: &Facts<'_>) -> Result<Value, String> {
    let query = required(ask.query, "query")?.concat();
    let documents = required(ask.documents, "documents")?;
    let mut ranked: Vec<(usize, f64)> = documents
        .iter()
        .enumerate()
        .map(|(index, document)| (index, relevance(&query, document)))
        .collect();
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
    ranked.truncate(ask.top_n.unwrap_or(usize::MAX));
    let results: Vec<Value> = ranked
        .iter()
        .map(|(index, score)| {
            json!({ "index": index, "relevance_score": score, "document": { "text": documents[*index] } })
        })
        .collect();
    Ok(
        json!({ "id": format!("rerank-{}", facts.id), "model": model(facts), "results": results, "usage": usage(facts) }),
    )
}

/// Answers `/v1/classify` with two classes.
pub(super) fn classify(ask: &Ask<'_>, facts: &Facts<'_>) -> Result<Value, String> {
    let inputs = required(ask.input, "input")?;
    let data: Vec<Value> = inputs
        .iter()
        .enumerate()
        .map(|(index, input)| {
            let first = relevance("class", input);
            let label = if first >= 0.5 { "LABEL_0" } else { "LABEL_1" };
            json!({ "index": index, "label": label, "probs": [first, 1.0 - first], "num_classes": 2 })
        })
        .collect();
    Ok(json!({
        "id": format!("classify-{}", facts.id), "object": "list", "created": facts.created,
        "model": model(facts), "data": data, "usage": usage(facts),
    }))
}

/// Answers `/v1/score`: scores each text of `text_2` against `text_1`.
pub(super) fn score(ask: &Ask<'_>, facts: &Facts<'_>) -> Result<Value, String> {
    let first = required(ask.text_1, "text_1")?.concat();
    let others = required(ask.text_2, "text_2")?;
    let data: Vec<Value> = others
        .iter()
        .enumerate()
        .map(|(index, text)| json!({ "index": index, "object": "score", "score": relevance(&first, text) }))
        .collect();
    Ok(json!({
        "id": format!("score-{}", facts.id), "object": "list", "created": facts.created,
        "model": model(facts), "data": data, "usage": usage(facts),
    }))
}

/// Answers `/v1/tokenize`. A token is four bytes, and its number encodes them.
pub(super) fn tokenize(ask: &Ask<'_>) -> Result<Value, String> {
    let text = required(ask.prompt, "prompt")?.concat();
    let tokens: Vec<u32> = text.as_bytes().chunks(4).map(token).collect();
    Ok(json!({ "count": tokens.len(), "max_model_len": MAX_MODEL_TOKENS, "tokens": tokens }))
}

/// Answers `/v1/detokenize`, the inverse of [`tokenize`].
pub(super) fn detokenize(ask: &Ask<'_>) -> Result<Value, String> {
    let tokens = ask.tokens.ok_or("tokens is missing")?;
    let tokens: Vec<u32> =
        serde_json::from_str(tokens.get()).map_err(|e| format!("tokens: {e}"))?;
    let mut bytes: Vec<u8> = tokens.into_iter().flat_map(u32::to_le_bytes).collect();
    let text_bytes = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    bytes.truncate(text_bytes);
    Ok(json!({ "prompt": String::from_utf8_lossy(&bytes) }))
}

/// Answers `/v1/images/generations`, `/v1/images/edits` and `/v1/images/variations` with single pixels.
pub(super) fn images(ask: &Ask<'_>, facts: &Facts<'_>) -> Result<Value, String> {
    let count = ask.n.unwrap_or(1);
    if !(1..=MAX_IMAGES).contains(&count) {
        return Err(format!("n {count} is not in 1..={MAX_IMAGES}"));
    }
    Ok(json!({ "created": facts.created, "data": vec![json!({ "b64_json": PIXEL }); count] }))
}

/// Answers OpenAI's `/v1/moderations`. Each input has a score of its own, and is flagged from a half on.
pub(super) fn moderations(ask: &Ask<'_>, facts: &Facts<'_>) -> Result<Value, String> {
    let results: Vec<Value> = required(ask.input, "input")?
        .iter()
        .map(|input| {
            let score = relevance("violence", input);
            json!({
                "flagged": score >= 0.5,
                "categories": { "violence": score >= 0.5 },
                "category_scores": { "violence": score },
                "category_applied_input_types": { "violence": ["text"] },
            })
        })
        .collect();
    Ok(json!({ "id": format!("modr-{}", facts.id), "model": model(facts), "results": results }))
}

/// Answers Anthropic's `/v1/messages/count_tokens` and OpenAI's `/v1/responses/input_tokens`.
pub(super) fn count_tokens(facts: &Facts<'_>) -> Value {
    json!({ "object": "response.input_tokens", "input_tokens": facts.usage.prompt })
}

/// The bytes that `/v1/audio/speech` answers: as many as the input has, so that a lost one shows.
pub(super) fn speech(ask: &Ask<'_>) -> Result<Vec<u8>, String> {
    Ok(required(ask.input, "input")?.concat().into_bytes())
}

fn required(field: Option<&RawValue>, name: &str) -> Result<Vec<String>, String> {
    field.map(|field| ask::strings(Some(field))).ok_or_else(|| format!("{name} is missing"))
}

fn model(facts: &Facts<'_>) -> Value {
    serde_json::from_str(facts.model).unwrap_or(Value::Null)
}

fn usage(facts: &Facts<'_>) -> Value {
    json!({ "prompt_tokens": facts.usage.prompt, "total_tokens": facts.usage.prompt })
}

fn relevance(query: &str, document: &str) -> f64 {
    share(xxh3_64_with_seed(document.as_bytes(), xxh3_64(query.as_bytes())))
}

/// A vector of length 1 that depends on the input.
fn vector(input: &str, dimensions: usize) -> Vec<f32> {
    let numbers: Vec<f64> = (0..dimensions as u64)
        .map(|dimension| share(xxh3_64_with_seed(input.as_bytes(), dimension)) - 0.5)
        .collect();
    let length =
        numbers.iter().map(|number| number * number).sum::<f64>().sqrt().max(f64::MIN_POSITIVE);
    #[expect(clippy::cast_possible_truncation, reason = "an embedding has single precision")]
    numbers.into_iter().map(|number| (number / length) as f32).collect()
}

/// Maps a hash to a number from 0 to 1.
fn share(hash: u64) -> f64 {
    f64::from(u32::try_from(hash >> 32).expect("32 bits")) / (f64::from(u32::MAX) + 1.0)
}

fn token(bytes: &[u8]) -> u32 {
    let mut padded = [0; 4];
    padded[..bytes.len()].copy_from_slice(bytes);
    u32::from_le_bytes(padded)
}

fn to_base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let mut group = [0; 4];
        group[1..=three.len()].copy_from_slice(three);
        let bits = u32::from_be_bytes(group);
        for digit in 0..4 {
            text.push(if digit <= three.len() {
                char::from(DIGITS[(bits >> (18 - 6 * digit) & 63) as usize])
            } else {
                '='
            });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_matches_the_vectors_of_rfc_4648() {
        for (plain, coded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(to_base64(plain.as_bytes()), coded);
        }
    }

    #[test]
    fn detokenizing_restores_the_text() {
        for text in ["", "abc", "héllo wörld", "12345678"] {
            let body = json!({ "prompt": text }).to_string();
            let tokens = tokenize(&Ask::parse(body.as_bytes()).unwrap()).unwrap();
            assert_eq!(tokens["count"], text.len().div_ceil(4));
            let body = tokens.to_string();
            let back = detokenize(&Ask::parse(body.as_bytes()).unwrap()).unwrap();
            assert_eq!(back["prompt"], text);
        }
    }

    #[test]
    fn vectors_have_length_one_and_differ() {
        let (one, other) = (vector("a", 64), vector("b", 64));
        assert_eq!(one, vector("a", 64));
        assert_ne!(one, other);
        let length: f32 = one.iter().map(|number| number * number).sum();
        assert!((length - 1.0).abs() < 1e-5, "{length}");
    }
}
