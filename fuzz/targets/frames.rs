//! Any bytes at the door.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let (mut nodes, _) = smg_fuzz::pair();
    smg_fuzz::feed_frame(&mut nodes[0], bytes);
    smg_fuzz::settle(&mut nodes);
});
