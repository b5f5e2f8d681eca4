//! The parts of a manual page.

// clap's own generator of manual pages writes with roff, too.
use roff::{Inline, Roff, bold, roman};

/// The date of the manual pages changes with their content, not with the day of a build.
pub(super) const DATE: &str = "2026-11-27";

pub(super) fn title(roff: &mut Roff, name: &str, section: &str, manual: &str) {
    let source = concat!("tonk-relay ", env!("CARGO_PKG_VERSION"));
    roff.control("TH", [name, section, DATE, source, manual]);
}

/// Text between backquotes is bold.
pub(super) fn inline(text: &str) -> Vec<Inline> {
    assert!(text.matches('`').count().is_multiple_of(2), "a backquote is not closed: {text}");
    let parts = text.split('`').enumerate();
    parts.map(|(n, part)| if n % 2 == 0 { roman(part) } else { bold(part) }).collect()
}

pub(super) fn section(roff: &mut Roff, name: &str, entries: &[(&str, &str)]) {
    roff.control("SH", [name]);
    for (n, (term, text)) in entries.iter().enumerate() {
        if !term.is_empty() {
            roff.control("TP", []);
            roff.text([bold(*term)]);
        } else if n > 0 {
            roff.control("PP", []);
        }
        roff.text(inline(text));
    }
}

/// A block that is shown as it is.
pub(super) fn verbatim(roff: &mut Roff, text: &str) {
    roff.control("nf", []);
    for line in text.trim_end().lines() {
        roff.text([roman(line)]);
    }
    roff.control("fi", []);
}

pub(super) fn examples(roff: &mut Roff, entries: &[(&str, &str)]) {
    roff.control("SH", ["EXAMPLES"]);
    for (heading, commands) in entries {
        roff.control("SS", [*heading]);
        verbatim(roff, commands);
    }
}
