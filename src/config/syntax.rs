//! Explains why a config file is not valid TOML.

/// An error of the syntax.
pub(super) struct SyntaxFault {
    /// The line, from 1.
    pub(super) line: usize,
    /// The key on that line, as `section.key`. Empty if the line has none.
    pub(super) key: String,
    /// What is wrong.
    pub(super) problem: String,
}

/// Returns the line of the byte at `offset`, from 1.
pub fn line_of(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|b| *b == b'\n').count()
}

/// Explains an error of the TOML parser.
pub(super) fn explain(text: &str, error: &toml::de::Error) -> SyntaxFault {
    let line = error.span().map_or(1, |span| line_of(text, span.start));
    let settings = settings(text);
    let Some(setting) = settings.iter().find(|setting| setting.line == line) else {
        let problem = format!("is not valid TOML: {}", error.message().replace('\n', ", "));
        return SyntaxFault { line, key: String::new(), problem };
    };
    let first = settings.iter().find(|first| first.key == setting.key && first.line < line);
    let problem = if error.message().starts_with("duplicate key")
        && let Some(first) = first
    {
        format!("is set twice, first on line {}; keep one of the two", first.line)
    } else if let Some(bare) = bare_word(setting.value) {
        // A URL may have a password.
        let bare = if bare.contains("://") && bare.contains('@') { "the URL" } else { bare };
        let name = setting.key.rsplit('.').next().unwrap_or_default();
        format!(r#"{bare} is not a value; strings need quotes: {name} = "{bare}""#)
    } else {
        format!("is not valid TOML: {}", error.message().replace('\n', ", "))
    };
    SyntaxFault { line, key: setting.key.clone(), problem }
}

/// A line of the form `key = value`.
struct Setting<'a> {
    line: usize,
    key: String,
    value: &'a str,
}

/// Returns the lines of the form `key = value`, without parsing their values.
fn settings(text: &str) -> Vec<Setting<'_>> {
    let mut section = "";
    let mut settings = Vec::new();
    for (index, line) in text.lines().map(str::trim).enumerate() {
        if let Some(header) = line.strip_prefix('[') {
            section = header.split(']').next().unwrap_or_default().trim();
        } else if let Some((name, value)) = line.split_once('=')
            && name.trim().bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b))
        {
            let name = name.trim();
            let key = if section.is_empty() { name.into() } else { format!("{section}.{name}") };
            settings.push(Setting { line: index + 1, key, value: value.trim() });
        }
    }
    settings
}

/// Returns a value without its comment if it would be valid as a string in quotes only.
fn bare_word(value: &str) -> Option<&str> {
    let word = value.split('#').next().unwrap_or_default().trim();
    let begins_as_other = word.starts_with(['"', '\'', '[', '{']);
    let is_plain = !word.contains(['"', '\\']);
    (!word.is_empty() && !begins_as_other && is_plain).then_some(word)
}
