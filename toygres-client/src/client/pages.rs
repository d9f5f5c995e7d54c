//! Lists, a page at a time.

use super::{ClientError, QueryPair};
use crate::resources::Page;

/// Which part of a list is wanted; everything from its beginning by default.
#[derive(Debug, Clone, Default)]
pub struct PageRequest {
    /// How many items at most; as many as the server likes if left out.
    pub limit: Option<usize>,
    /// Where to go on: the last page's `next_cursor`.
    pub cursor: Option<String>,
}

impl PageRequest {
    pub(super) fn limit(&self) -> QueryPair {
        ("limit", self.limit.map(|limit| limit.to_string()))
    }

    pub(super) fn cursor(&self) -> QueryPair {
        ("cursor", self.cursor.clone())
    }
}

/// Follows a list's cursors until its end, or until `limit` items are there.
///
/// # Errors
/// Those of `fetch`.
pub async fn all_pages<T>(
    limit: Option<usize>,
    fetch: impl AsyncFn(&PageRequest) -> Result<Page<T>, ClientError>,
) -> Result<Vec<T>, ClientError> {
    let mut items = Vec::new();
    let mut request = PageRequest { limit, cursor: None };
    loop {
        let page = fetch(&request).await?;
        items.extend(page.items);
        let missing = limit.map(|limit| limit.saturating_sub(items.len()));
        match page.next_cursor {
            Some(cursor) if missing != Some(0) => request = PageRequest { limit: missing, cursor: Some(cursor) },
            _ => break,
        }
    }
    items.truncate(limit.unwrap_or(usize::MAX));
    Ok(items)
}
