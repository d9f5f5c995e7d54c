//! Text that may be written as a whole number: `17` is as good as `"17"`.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, Visitor};

/// Text, or a whole number as text. A fraction is refused: `17.10` would be read as 17.1.
pub(crate) struct TextOrNumber(pub(crate) String);

impl<'de> Deserialize<'de> for TextOrNumber {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextOrNumberVisitor;

        impl Visitor<'_> for TextOrNumberVisitor {
            type Value = TextOrNumber;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("text (in quotes), or a whole number")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(TextOrNumber(text.to_owned()))
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Self::Value, E> {
                Ok(TextOrNumber(number.to_string()))
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Self::Value, E> {
                Ok(TextOrNumber(number.to_string()))
            }
        }

        deserializer.deserialize_any(TextOrNumberVisitor)
    }
}
