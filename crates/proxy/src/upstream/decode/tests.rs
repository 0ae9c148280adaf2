//! Tests of bodies that are received in pieces of any size, with errors, and incomplete.

use proptest::prelude::*;

use super::*;

/// Feeds each of `pieces` as one read, and takes all payload after each read.
fn read(decoder: Decoder, pieces: &[&[u8]]) -> (Vec<u8>, Incoming) {
    let mut incoming = Incoming::new(decoder);
    let mut payload = Vec::new();
    for piece in pieces {
        if incoming.wrong().is_some() || incoming.decoder == Decoder::Done {
            break;
        }
        let mut buffer = BytesMut::from(*piece);
        incoming.feed(&mut buffer);
        assert!(buffer.is_empty());
        while let Some(piece) = incoming.next_piece() {
            assert!(!piece.is_empty());
            payload.extend_from_slice(&piece);
        }
    }
    (payload, incoming)
}

fn chunked(bytes: &[u8]) -> (Vec<u8>, Incoming) {
    read(Decoder::CHUNKED, &[bytes])
}

#[test]
fn small_chunks_of_one_read_leave_as_one_piece() {
    let mut incoming = Incoming::new(Decoder::CHUNKED);
    incoming
        .feed(&mut BytesMut::from(&b"3\r\nabc\r\n2;x=y\r\nde\r\n1 \r\nf\r\n0\r\nt: 1\r\n\r\n"[..]));
    assert_eq!(incoming.next_piece().unwrap(), "abcdef");
    assert!(incoming.is_done() && incoming.ends_clean());
}

#[test]
fn large_pieces_are_slices_of_what_was_read() {
    let mut read = BytesMut::from(&b"3000\r\n"[..]);
    read.extend_from_slice(&[7; 0x3000]);
    read.extend_from_slice(b"\r\n1\r\na\r\n1\r\nb\r\n");
    let start = read.as_ptr() as usize;
    let mut incoming = Incoming::new(Decoder::CHUNKED);
    incoming.feed(&mut read);
    let piece = incoming.next_piece().unwrap();
    assert_eq!((piece.as_ptr() as usize, piece.len()), (start + 6, 0x3000));
    assert_eq!(incoming.next_piece().unwrap(), "ab");
    assert_eq!(incoming.next_piece(), None);
}

#[test]
fn bytes_after_the_end_are_surplus() {
    for (decoder, bytes) in
        [(Decoder::CHUNKED, &b"1\r\na\r\n0\r\n\r\nH"[..]), (Decoder::Length(1), b"aH")]
    {
        let (payload, incoming) = read(decoder, &[bytes]);
        assert_eq!(payload, b"a");
        assert!(incoming.is_done() && !incoming.ends_clean());
    }
    let mut incoming = Incoming::new(Decoder::Done);
    incoming.begin(&mut BytesMut::from(&b"x"[..]));
    assert!(incoming.is_done() && !incoming.ends_clean());
}

#[test]
fn payload_before_an_error_is_returned_first() {
    let (payload, incoming) = chunked(b"2\r\nab\r\n1\r\ncX");
    assert_eq!(payload, b"abc");
    assert_eq!(incoming.wrong(), Some(FramingError::LineEnd(b'X')));
}

#[test]
fn framing_errors_are_reported() {
    let wrong = |bytes: &[u8]| chunked(bytes).1.wrong();
    assert_eq!(wrong(b"x"), Some(FramingError::Size(b'x')));
    assert_eq!(wrong(b"\r\n"), Some(FramingError::Size(b'\r')));
    assert_eq!(wrong(b";a\r\n"), Some(FramingError::Size(b';')));
    assert_eq!(wrong(b"-1\r\n"), Some(FramingError::Size(b'-')));
    assert_eq!(wrong(b"1\n"), Some(FramingError::Size(b'\n')));
    assert_eq!(wrong(b"1;\n"), Some(FramingError::LineEnd(b'\n')));
    assert_eq!(wrong(b"0\r\n\n"), Some(FramingError::LineEnd(b'\n')));
    assert_eq!(wrong(b"0\r\nt: 1\n"), Some(FramingError::LineEnd(b'\n')));
    assert_eq!(wrong(b"ffffffffffffffff\r\n"), None);
    assert_eq!(wrong(b"10000000000000000\r\n"), Some(FramingError::TooLarge));
    let endless = |start: &[u8], filler: &[u8]| wrong(&[start, &filler.repeat(20 << 10)].concat());
    assert_eq!(endless(b"1;", b"x"), Some(FramingError::Extensions));
    assert_eq!(endless(b"0\r\n", b"t: 1\r\n"), Some(FramingError::Trailers));
    assert_eq!(endless(b"", b"1;x\r\na\r\n"), Some(FramingError::Extensions));
}

#[test]
fn a_close_ends_only_a_body_without_other_framing() {
    assert!(read(Decoder::UntilClose, &[b"a"]).1.close());
    assert!(!read(Decoder::Length(2), &[b"a"]).1.close());
    assert!(!chunked(b"1\r\na\r\n0\r\n").1.close());
    assert!(chunked(b"1\r\na\r\n0\r\n\r\n").1.close());
}

#[test]
fn the_remaining_length_is_known_if_it_was_given() {
    let mut incoming = Incoming::new(Decoder::Length(5));
    incoming.begin(&mut BytesMut::from(&b"ab"[..]));
    assert_eq!((incoming.left(), incoming.is_done()), (Some(5), false));
    assert_eq!(incoming.next_piece().unwrap(), "ab");
    assert_eq!(incoming.left(), Some(3));
    assert_eq!(Incoming::new(Decoder::CHUNKED).left(), None);
}

/// A chunked body: chunks with their extensions, then trailers.
fn encoded(chunks: &[(Vec<u8>, String)], trailers: &[String]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (payload, extension) in chunks {
        bytes.extend_from_slice(format!("{:x}{extension}\r\n", payload.len()).as_bytes());
        bytes.extend_from_slice(payload);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"000\r\n");
    for trailer in trailers {
        bytes.extend_from_slice(trailer.as_bytes());
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"\r\n");
    bytes
}

fn split<'a>(bytes: &'a [u8], at: &[prop::sample::Index]) -> Vec<&'a [u8]> {
    let mut at: Vec<usize> = at.iter().map(|at| at.index(bytes.len() + 1)).collect();
    at.extend([0, bytes.len()]);
    at.sort_unstable();
    at.dedup();
    at.windows(2).map(|ends| &bytes[ends[0]..ends[1]]).collect()
}

fn chunks() -> impl Strategy<Value = Vec<(Vec<u8>, String)>> {
    let payload = prop_oneof![
        8 => prop::collection::vec(any::<u8>(), 1..40),
        1 => prop::collection::vec(any::<u8>(), 1..20_000),
    ];
    prop::collection::vec((payload, "(;[a-z]{1,5}(=[a-z]{1,5})?){0,2}"), 0..20)
}

proptest! {
    #[test]
    fn any_split_gives_the_same_body(
        chunks in chunks(),
        trailers in prop::collection::vec("[a-z]{1,9}: [a-z]{0,9}", 0..3),
        at in prop::collection::vec(any::<prop::sample::Index>(), 0..30),
    ) {
        let bytes = encoded(&chunks, &trailers);
        let whole: Vec<u8> = chunks.iter().flat_map(|(payload, _)| payload.clone()).collect();
        let (payload, incoming) = read(Decoder::CHUNKED, &split(&bytes, &at));
        prop_assert!(payload == whole);
        prop_assert!(incoming.is_done() && incoming.ends_clean());
        let (payload, incoming) =
            read(Decoder::of_length(whole.len() as u64), &split(&whole, &at));
        prop_assert!(payload == whole);
        prop_assert!(incoming.is_done() && incoming.ends_clean());
    }

    #[test]
    fn a_truncated_body_is_never_complete(
        chunks in chunks(),
        keep in any::<prop::sample::Index>(),
        at in prop::collection::vec(any::<prop::sample::Index>(), 0..5),
    ) {
        let bytes = encoded(&chunks, &[]);
        let cut = &bytes[..keep.index(bytes.len())];
        let mut incoming = read(Decoder::CHUNKED, &split(cut, &at)).1;
        prop_assert!(incoming.wrong().is_none());
        prop_assert!(!incoming.close());
    }

    #[test]
    fn garbage_yields_no_more_bytes_than_were_received(
        bytes in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..300),
            "[0-3a;\r\n x]{0,300}".prop_map(String::into_bytes),
        ],
        at in prop::collection::vec(any::<prop::sample::Index>(), 0..5),
    ) {
        let (payload, _) = read(Decoder::CHUNKED, &split(&bytes, &at));
        prop_assert!(payload.len() <= bytes.len());
    }
}
