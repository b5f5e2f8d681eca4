use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::tungstenite::Message as Frame;

use super::{frame::MASKED, *};

const MAX: u64 = 20_000;

/// A masked frame, with its length in the shortest form.
fn frame(first: u8, payload: &[u8], key: [u8; 4]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        length @ 0..=125 => frame.push(MASKED | length as u8),
        length @ 126..=0xffff => {
            frame.push(MASKED | 126);
            frame.extend((length as u16).to_be_bytes());
        }
        length => {
            frame.push(MASKED | 127);
            frame.extend((length as u64).to_be_bytes());
        }
    }
    frame.extend(key);
    frame.extend(payload.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key));
    frame
}

/// Bytes of which each tells where it was.
fn payload(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at % 251) as u8).collect()
}

/// What the WebSocket above the filter reads, and how it was truncated; the messages come over a
/// stream that has that many bytes at once.
async fn read(input: Vec<u8>, at_once: usize) -> (Vec<Frame>, Vec<Truncation>, Option<String>) {
    let (ours, mut theirs) = tokio::io::duplex(at_once);
    let stream = Truncating::new(ours, MAX);
    let truncated = stream.truncated();
    let config = WebSocketConfig::default().read_buffer_size(2 << 10);
    let socket = WebSocketStream::from_raw_socket(stream, Role::Server, Some(config)).await;
    let (mut writer, mut reader) = socket.split();
    let (mut half, mut sender) = tokio::io::split(&mut theirs);
    let send = async {
        let _ = sender.write_all(&input).await;
        let _ = sender.shutdown().await;
    };
    let drain = async {
        let mut space = [0; 256];
        while half.read(&mut space).await.is_ok_and(|read| read > 0) {}
    };
    let (mut frames, mut truncations) = (Vec::new(), Vec::new());
    let receive = async {
        let mut messages = 0;
        loop {
            match reader.next().await {
                Some(Ok(frame)) => {
                    if frame.is_binary() || frame.is_text() {
                        truncations.extend(truncated.take(messages));
                        messages += 1;
                    }
                    frames.push(frame);
                }
                Some(Err(error)) => break Some(error.to_string()),
                None => break None,
            }
        }
    };
    let error = tokio::select! {
        error = receive => error,
        _ = async { tokio::join!(send, drain, std::future::pending::<()>()) } => None,
    };
    let _ = writer.close().await;
    (frames, truncations, error)
}

/// The same of the pure part, which gets its input in two pieces.
fn passed_on(input: &[u8], split: usize, max: u64) -> (Vec<u8>, Vec<Truncation>) {
    let mut truncator = Truncator::new(max);
    let mut passed = Vec::new();
    let (first, second) = input.split_at(split);
    for piece in [first, second] {
        truncator.parse(piece, &mut |bytes| passed.extend_from_slice(bytes));
    }
    let truncations = lock(&truncator.truncated.messages).iter().copied().collect();
    (passed, truncations)
}

fn binary(payload: &[u8]) -> Frame {
    Frame::Binary(payload.to_vec().into())
}

/// What is left of a message.
fn around(message: &[u8], truncation: Truncation) -> Vec<u8> {
    let after = truncation.head + truncation.missing as usize;
    [message.get(..truncation.head).expect("head"), message.get(after..).expect("tail")].concat()
}

#[test]
fn frames_within_the_limit_pass_unchanged_wherever_they_are_split() {
    let input = [
        frame(FINAL | BINARY, &payload(0), [1, 2, 3, 4]),
        frame(FINAL | BINARY, &payload(100), [1, 2, 3, 4]),
        frame(BINARY, &payload(200), [9, 8, 7, 6]),
        frame(FINAL | 9, b"ping", [5; 4]),
        frame(CONTINUATION, &payload(0), [1; 4]),
        frame(FINAL | CONTINUATION, &payload(100), [4, 3, 2, 1]),
        frame(FINAL | TEXT, b"text", [7; 4]),
    ]
    .concat();
    for split in 0..=input.len() {
        assert_eq!(passed_on(&input, split, 300), (input.clone(), vec![]), "split at {split}");
    }
}

#[test]
fn a_large_message_is_truncated_alike_wherever_it_is_split() {
    let messages = [payload(10), payload(9_000), payload(20)];
    let keys = [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]];
    let frames = messages.iter().zip(keys).map(|(data, key)| frame(FINAL | BINARY, data, key));
    let input = frames.collect::<Vec<_>>().concat();
    let truncation = Truncation { message: 1, head: KEPT, missing: 9_000 - 2 * KEPT as u64 };
    let whole = passed_on(&input, 0, 3_000);
    assert_eq!(whole.1, [truncation]);
    // All of them around the headers, and where the beginning and the end of what is left are.
    let splits = (0..=100).chain(4_000..=4_200).chain(4_900..=5_000).chain(8_900..=input.len());
    for split in splits {
        assert_eq!(passed_on(&input, split, 3_000), whole, "split at {split}");
    }
}

#[tokio::test]
async fn what_is_left_of_a_large_message_is_its_beginning_and_its_end() {
    // Lengths of 16 and of 64 bits, and each offset of the mask.
    for length in [20_001, 20_002, 20_003, 20_004, 65_535, 65_536, 79_999] {
        let large = payload(length);
        let input = [
            frame(FINAL | BINARY, b"before", [3, 1, 4, 1]),
            frame(FINAL | BINARY, &large, [0x5a, 0xc3, 0x0f, 0x96]),
            frame(FINAL | BINARY, b"after", [2, 7, 1, 8]),
        ];
        for at_once in [1_000, 100_000] {
            let (frames, truncations, _) = read(input.concat(), at_once).await;
            let missing = (length - 2 * KEPT) as u64;
            let truncation = Truncation { message: 1, head: KEPT, missing };
            assert_eq!(truncations, [truncation]);
            let left = around(&large, truncation);
            assert_eq!(frames, [binary(b"before"), binary(&left), binary(b"after")]);
        }
    }
}

#[tokio::test]
async fn the_fragments_of_a_large_message_are_counted_together() {
    let large = payload(50_000);
    let parts = [7_001, 7_002, 7_003, 20_000, 3, 0, 8_991];
    let mut input = Vec::new();
    let mut rest = &large[..];
    for (at, length) in parts.into_iter().enumerate() {
        let (part, others) = rest.split_at(length);
        rest = others;
        let opcode = if at == 0 { BINARY } else { CONTINUATION };
        let last = if rest.is_empty() { FINAL } else { 0 };
        input.extend(frame(last | opcode, part, [at as u8, 99, 12, 200]));
        input.extend(frame(FINAL | 9, &[at as u8], [1; 4]));
    }
    input.extend(frame(FINAL | BINARY, b"after", [1; 4]));
    let (frames, truncations, _) = read(input, 700).await;
    let [truncation] = truncations[..] else { panic!("{truncations:?}") };
    let (head, missing) = (7_001 + 7_002, 50_000 - 7_001 - 7_002 - KEPT as u64);
    assert_eq!(truncation, Truncation { message: 0, head, missing });
    let messages: Vec<&Frame> = frames.iter().filter(|frame| !frame.is_ping()).collect();
    assert_eq!(messages, [&binary(&around(&large, truncation)), &binary(b"after")]);
    assert_eq!(frames.len(), messages.len() + parts.len(), "and every ping");
}

#[test]
fn a_message_just_over_a_small_limit_is_marked_although_it_is_whole() {
    let input = frame(FINAL | BINARY, &payload(400), [1, 2, 3, 4]);
    let (_, truncations) = passed_on(&input, 0, 300);
    assert_eq!(truncations, [Truncation { message: 0, head: 400, missing: 0 }]);
}

#[tokio::test]
async fn a_message_of_more_than_four_times_the_limit_ends_the_socket() {
    let single = frame(FINAL | BINARY, &payload(80_001), [1; 4]);
    let fragments = [BINARY, CONTINUATION, CONTINUATION, CONTINUATION, CONTINUATION]
        .map(|opcode| frame(opcode, &payload(16_001), [1; 4]));
    let text = frame(FINAL | TEXT, &[b'a'; 20_001], [1; 4]);
    let endless = [&[FINAL | BINARY, MASKED | 127][..], &[0xff; 8], &[0; 4]].concat();
    for large in [single, fragments.concat(), text, endless] {
        let input = [frame(FINAL | BINARY, b"before", [1; 4]), large].concat();
        let (frames, truncations, error) = read(input, 1_000).await;
        assert_eq!(frames, [binary(b"before")]);
        assert_eq!(truncations, []);
        assert!(error.is_some_and(|error| error.contains("too large")));
    }
}

#[tokio::test]
async fn what_breaks_the_protocol_is_for_the_websocket_to_refuse() {
    let begun = frame(BINARY, &payload(30_000), [1; 4]);
    let cases = [
        (vec![FINAL | BINARY, 1, 0], "unmasked"),
        (frame(FINAL | 0x40 | BINARY, b"x", [1; 4]), "Reserved bits"),
        (frame(FINAL | 3, b"x", [1; 4]), "opcode"),
        (frame(FINAL | 9, &[0; 126], [1; 4]), "Control frame too big"),
        (frame(9, b"x", [1; 4]), "Fragmented control frame"),
        (frame(FINAL | CONTINUATION, b"x", [1; 4]), "nothing to continue"),
        ([begun, frame(FINAL | BINARY, b"x", [1; 4])].concat(), "While waiting"),
    ];
    for (input, text) in cases {
        let (frames, _, error) = read(input, 1_000).await;
        assert_eq!(frames, []);
        let error = error.unwrap_or_default();
        assert!(error.contains(text), "{text}: {error}");
    }
}
