//! Any bytes as what a member says.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let (mut nodes, _) = smg_fuzz::pair();
    smg_fuzz::feed_message(&mut nodes, bytes);
    smg_fuzz::settle(&mut nodes);
});
