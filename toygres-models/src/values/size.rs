//! Storage sizes.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::text_or_number::WholeNumber;
use crate::Invalid;

/// Largest size in GB: 64 TiB, the largest volume that the common clouds offer.
pub const MAX_STORAGE_SIZE_GB: i64 = 65_536;

/// Storage size of an instance in GB, 1 to 65,536.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "WholeNumber", into = "i32")]
pub struct StorageSize(i32);

impl StorageSize {
    /// One GB.
    pub const SMALLEST: Self = Self(1);

    /// The size in GB.
    #[must_use]
    pub fn gb(self) -> i32 {
        self.0
    }
}

impl Default for StorageSize {
    fn default() -> Self {
        Self(10)
    }
}

impl TryFrom<i64> for StorageSize {
    type Error = Invalid;

    fn try_from(value: i64) -> Result<Self, Invalid> {
        match i32::try_from(value) {
            Ok(gb) if (1..=MAX_STORAGE_SIZE_GB).contains(&value) => Ok(Self(gb)),
            _ => Err(Invalid::new("storage_size_gb", format!("{value} is out of range; give 1 to {MAX_STORAGE_SIZE_GB}"))),
        }
    }
}

impl TryFrom<WholeNumber> for StorageSize {
    type Error = Invalid;

    fn try_from(value: WholeNumber) -> Result<Self, Invalid> {
        value.0.try_into()
    }
}

impl From<StorageSize> for i32 {
    fn from(value: StorageSize) -> Self {
        value.0
    }
}

impl fmt::Display for StorageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} GB", self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn accepts_exactly_the_range(value: i64) {
            prop_assert_eq!(StorageSize::try_from(value).is_ok(), (1..=MAX_STORAGE_SIZE_GB).contains(&value));
        }
    }

    #[test]
    fn the_edges() {
        for bad in [0, -1, 65_537, 1_000_000_000] {
            assert!(StorageSize::try_from(bad).is_err());
        }
        assert_eq!(serde_json::to_string(&StorageSize::try_from(1).unwrap()).unwrap(), "1");
        assert_eq!(serde_json::from_str::<StorageSize>("65536").unwrap().gb(), 65_536);
    }
}
