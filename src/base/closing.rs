//! How a session ends.

/// What to do with a session's socket: an `error` message, then a close frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closing {
    /// The WebSocket close code.
    pub code: u16,
    /// Why, for the peer's eyes.
    pub reason: String,
    /// The reason's label in metrics.
    pub label: &'static str,
}

impl Closing {
    /// The way to end a session with this close code, reason and label.
    pub fn new(code: u16, reason: String, label: &'static str) -> Self {
        Self { code, reason, label }
    }
}
