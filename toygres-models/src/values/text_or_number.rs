//! Values that are written in more than one way: `17` is as good as `"17"`, and `10.0` as `10`.

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

            // To JSON Schema 18.0 is a whole number.
            fn visit_f64<E: de::Error>(self, number: f64) -> Result<Self::Value, E> {
                match number.fract() == 0.0 {
                    true => Ok(TextOrNumber(format!("{number:.0}"))),
                    false => Err(E::invalid_value(de::Unexpected::Float(number), &self)),
                }
            }
        }

        deserializer.deserialize_any(TextOrNumberVisitor)
    }
}

/// A whole number, in any of the spellings that JSON has for it: `10`, `10.0` and `1e1` are the same.
pub(crate) struct WholeNumber(pub(crate) i64);

impl<'de> Deserialize<'de> for WholeNumber {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct WholeNumberVisitor;

        impl Visitor<'_> for WholeNumberVisitor {
            type Value = WholeNumber;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number")
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Self::Value, E> {
                Ok(WholeNumber(number))
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Self::Value, E> {
                i64::try_from(number).map(WholeNumber).map_err(|_| E::invalid_value(de::Unexpected::Unsigned(number), &self))
            }

            fn visit_f64<E: de::Error>(self, number: f64) -> Result<Self::Value, E> {
                /// Up to here a floating-point number stands for one whole number only.
                const MAX_EXACT: f64 = 9_007_199_254_740_992.0;
                if number.fract() == 0.0 && number.abs() < MAX_EXACT {
                    return Ok(WholeNumber(number as i64));
                }
                Err(E::invalid_value(de::Unexpected::Float(number), &self))
            }
        }

        deserializer.deserialize_i64(WholeNumberVisitor)
    }
}
