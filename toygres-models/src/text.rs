//! Other people's words, as they are shown.

/// At most `limit` characters of a text, in one line: nothing that acts on a terminal, or turns the order in which it is read.
#[must_use]
pub fn one_line(text: &str, limit: usize) -> String {
    let acts = |character: char| {
        character.is_control()
            || matches!(character, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let harmless: String = text.chars().map(|character| if acts(character) { ' ' } else { character }).take(limit).collect();
    if text.chars().nth(limit).is_some() { harmless + "…" } else { harmless }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_one_harmless_line() {
        assert_eq!(one_line("a\nb\u{1b}[31m\u{202e}c", 100), "a b [31m c");
        assert_eq!(one_line(&"ä".repeat(500), 120).chars().count(), 121);
        assert_eq!(one_line("ab", 2), "ab");
    }
}
