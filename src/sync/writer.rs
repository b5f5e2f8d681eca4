//! Writes the messages of a WebSocket, large ones in fragments (RFC 6455, section 5.4).
//!
//! tungstenite 0.29 copies a frame as a whole into a buffer that never shrinks, and moves what is
//! left of it after each write. So a frame of the largest size would block its thread, and a
//! connection would keep the memory of the largest message that it was ever sent.

use std::future::poll_fn;

use bytes::Bytes;
use futures::{SinkExt, stream::SplitSink};
use tokio_tungstenite::tungstenite::{
    self, Message,
    protocol::frame::{
        Frame,
        coding::{Data, OpCode},
    },
};

use super::truncating::Socket;

/// Messages up to this many bytes are sent as they are.
const SMALL: usize = 16 << 10;
/// The most fragments of a message: some receivers limit them.
const MOST: usize = 256;

/// The writing half of a WebSocket.
pub(super) struct Writer {
    socket: SplitSink<Socket, Message>,
    /// What is left of a message. In a box, because most sockets send no large messages.
    rest: Option<Box<Fragments>>,
}

impl Writer {
    pub(super) fn new(socket: SplitSink<Socket, Message>) -> Self {
        Self { socket, rest: None }
    }

    /// Writes a binary message; it may not be flushed yet. If this is dropped,
    /// [`finish`](Self::finish) must follow.
    ///
    /// # Errors
    /// The socket has failed.
    pub(super) async fn write(&mut self, message: Bytes) -> Result<(), tungstenite::Error> {
        if message.len() <= SMALL {
            return self.socket.feed(Message::Binary(message)).await;
        }
        self.rest = Some(Box::new(Fragments::of(message)));
        self.finish().await
    }

    /// Writes what is left of a message, after which others may follow.
    ///
    /// # Errors
    /// The socket has failed.
    pub(super) async fn finish(&mut self) -> Result<(), tungstenite::Error> {
        while let Some(rest) = &mut self.rest {
            // Nothing is taken from the rest before it can be written.
            poll_fn(|cx| self.socket.poll_ready_unpin(cx)).await?;
            match rest.next() {
                Some(fragment) => self.socket.start_send_unpin(fragment)?,
                None => self.rest = None,
            }
        }
        Ok(())
    }

    /// Writes a control frame, and flushes.
    ///
    /// # Errors
    /// The socket has failed.
    pub(super) async fn control(&mut self, frame: Message) -> Result<(), tungstenite::Error> {
        self.socket.send(frame).await
    }

    /// Waits until everything is written.
    ///
    /// # Errors
    /// The socket has failed.
    pub(super) async fn flush(&mut self) -> Result<(), tungstenite::Error> {
        self.socket.flush().await
    }

    /// Closes the socket.
    ///
    /// # Errors
    /// The socket has failed.
    pub(super) async fn close(&mut self) -> Result<(), tungstenite::Error> {
        self.socket.close().await
    }
}

/// The fragments of a large binary message, in their order.
struct Fragments {
    message: Bytes,
    size: usize,
    /// Of the next fragment; none after the last one.
    opcode: Option<Data>,
}

impl Fragments {
    fn of(message: Bytes) -> Self {
        let size = message.len().div_ceil(MOST).max(SMALL);
        Self { message, size, opcode: Some(Data::Binary) }
    }
}

impl Iterator for Fragments {
    type Item = Message;

    fn next(&mut self) -> Option<Message> {
        let opcode = OpCode::Data(self.opcode?);
        let fragment = self.message.split_to(self.size.min(self.message.len()));
        let is_last = self.message.is_empty();
        self.opcode = (!is_last).then_some(Data::Continue);
        Some(Message::Frame(Frame::message(fragment, opcode, is_last)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_cut_into_a_bounded_number_of_fragments() {
        for length in [SMALL + 1, 2 * SMALL, 3 * SMALL, 5 << 20, (100 << 20) + 7] {
            let message = Bytes::from((0..length).map(|n| n as u8).collect::<Vec<_>>());
            let all: Vec<Message> = Fragments::of(message.clone()).collect();
            assert!((2..=MOST).contains(&all.len()), "{length}: {}", all.len());
            let mut joined = Vec::new();
            for (n, frame) in all.iter().enumerate() {
                let Message::Frame(frame) = frame else { panic!("{frame:?} is not a fragment") };
                let code = if n == 0 { Data::Binary } else { Data::Continue };
                assert_eq!(frame.header().opcode, OpCode::Data(code));
                assert_eq!(frame.header().is_final, n + 1 == all.len(), "{n} of {}", all.len());
                joined.extend_from_slice(frame.payload());
            }
            assert!(joined == message, "{length} bytes");
        }
    }
}
