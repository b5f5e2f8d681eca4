//! Text that people read. Clients choose names that are shown in the log and in terminals, so some
//! characters are not allowed in them.

use std::fmt::{Display, Formatter, Result};

/// A number of things, as in "1 document" and "2 documents". The noun takes an s.
#[derive(Clone, Copy, Debug)]
pub struct Count<N>(pub N, pub &'static str);

impl<N: Display + PartialEq + From<u8>> Display for Count<N> {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let Self(number, noun) = self;
        let ending = if *number == N::from(1) { "" } else { "s" };
        write!(f, "{number} {noun}{ending}")
    }
}

/// Whether a character is invisible: control and format characters, which can reorder or hide the
/// text around them, and line and paragraph separators. These are Unicode's categories Cc, Cf, Zl
/// and Zp, version 17.
pub fn is_invisible(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}'
            | '\u{890}'..='\u{891}' | '\u{8e2}' | '\u{180e}' | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{2064}' | '\u{2066}'..='\u{206f}' | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}'
            | '\u{110bd}' | '\u{110cd}' | '\u{13430}'..='\u{1343f}' | '\u{1bca0}'..='\u{1bca3}'
            | '\u{1d173}'..='\u{1d17a}' | '\u{e0001}' | '\u{e0020}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_singular() {
        let texts = [0, 1, 2].map(|number| Count(number, "bundle").to_string());
        assert_eq!(texts, ["0 bundles", "1 bundle", "2 bundles"]);
    }

    #[test]
    fn characters_that_reorder_or_hide_text_are_invisible() {
        for c in [
            '\n', '\u{7f}', '\u{85}', '\u{200b}', '\u{2028}', '\u{2029}', '\u{202e}', '\u{2066}',
            '\u{feff}',
        ] {
            assert!(is_invisible(c), "{c:?}");
        }
        assert!(!"peer-1 äöü 東京 🦀 עברית ـ".contains(is_invisible));
    }
}
