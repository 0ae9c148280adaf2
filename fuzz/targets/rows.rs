//! Any bytes as rows of every store: the first byte says how long the key is.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((length, rest)) = bytes.split_first() else { return };
    let (key, content) = rest.split_at(rest.len().min(usize::from(*length)));
    let (mut nodes, _) = smg_fuzz::pair();
    smg_fuzz::feed_row(&mut nodes, 1, key, content);
    smg_fuzz::settle(&mut nodes);
});
