//! Who asked for a change.

/// Who asked for a change, for what reason, and how a repeat of the request is recognised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requested {
    /// A token's name, or `toygres` for what it does by itself.
    pub actor: String,
    /// For a person: by whom and by which way it was asked for.
    pub cause: String,
    /// Names the request: the operation that carries it out is found again by it.
    pub idempotency_key: Option<IdempotencyKey>,
}

/// Names a request, so that its repeat is recognised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdempotencyKey {
    /// The key, which the caller makes unique among all clients.
    pub key: String,
    /// A digest of the request: the same key with another digest is another request.
    pub request_sha256: [u8; 32],
}

impl Requested {
    /// Asked for by `actor` through the API.
    #[must_use]
    pub fn by(actor: &str) -> Self {
        Self { actor: actor.to_owned(), cause: format!("requested by {actor}"), idempotency_key: None }
    }
}
