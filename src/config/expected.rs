//! Says why the value of a key is refused: what was found, and an example of a good value.

use toml::Value;

/// The longest part of a value that a fault shows, in characters.
const MAX_SHOWN: usize = 80;

/// Examples for the keys whose default is empty.
const EXAMPLES: &[(&str, &str)] = &[
    ("http.public_url", r#""wss://sync.example.org""#),
    ("tls.cert", r#""/etc/tonk-relay.tls/fullchain.pem""#),
    ("tls.key", r#""/etc/tonk-relay.tls/privkey.pem""#),
    ("bundle.path", r#""/srv/app.tonk""#),
    ("bundle.wasm", r#""/srv/tonk_core_bg.wasm""#),
    ("bundle.blank", r#""/srv/blank.tonk""#),
    ("bundles.bucket", r#""my-bundles""#),
    ("bundles.region", r#""eu-central-1""#),
    ("bundles.prefix", r#""relay/""#),
    ("bundles.endpoint_url", r#""https://s3.example.org""#),
    (DATABASE, r#""postgres://tonk_relay@db.example.org/tonk_relay""#),
    ("cluster.password_file", r#""/etc/tonk-relay.database-password""#),
    ("sync.peer_id", r#""relay-1""#),
    ("auth.mode", r#""token""#),
    ("auth.jwt_keys", r#""/etc/tonk-relay.jwks""#),
    ("auth.jwt_issuer", r#""https://id.example.org""#),
    ("auth.jwt_audience", r#""tonk-relay""#),
    ("auth.anonymous", r#"["download"]"#),
];

const DATABASE: &str = "cluster.database";

/// Returns a good value of a key, as TOML.
pub(super) fn example(key: &str, default: &Value) -> String {
    let example = EXAMPLES.iter().find(|(of, _)| *of == key);
    example.map_or_else(|| default.to_string(), |(_, example)| (*example).to_owned())
}

/// Returns why `value` is refused: because of its type, which is not that of `default`, or else
/// because of the error of its deserialization.
pub(super) fn problem(key: &str, value: &Value, default: &Value, error: &str) -> String {
    let example = example(key, default);
    if !value.same_type(default) {
        let example = match (value, default) {
            (Value::String(_), Value::Array(_)) => format!(", such as [{value}]"),
            (_, Value::Boolean(_)) => String::new(),
            _ => format!(", such as {example}"),
        };
        let (found, expected) = (kind(value), kind(default));
        // It may have a password.
        let value = if key == DATABASE { "the value".to_owned() } else { shown(value) };
        return format!("{value} is {found}; expected {expected}{example}");
    }
    // All lists of the config are lists of strings.
    if let Value::Array(items) = value
        && let Some(item) = items.iter().find(|item| !item.is_str())
    {
        let (item, found) = (shown(item), kind(item));
        return format!("{item} is {found}; expected strings in quotes, such as {example}");
    }
    match (value, error.split_once(", expected ")) {
        // An enum: serde lists its variants.
        (Value::String(_), Some((start, variants))) if start.starts_with("unknown variant") => {
            format!("{} is unknown; expected {}", shown(value), variants.replace('`', "\""))
        }
        (Value::Integer(number), _) if *number < 0 => {
            format!("{number} is negative; expected an integer of 0 or more, such as {example}")
        }
        _ => error.trim().replace('\n', ", "),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "a string",
        Value::Integer(_) => "an integer",
        Value::Float(_) => "a float",
        Value::Boolean(_) => "true or false",
        Value::Datetime(_) => "a date",
        Value::Array(_) => "a list",
        Value::Table(_) => "a section",
    }
}

/// Returns a value as TOML, cut to a length that fits on a line.
fn shown(value: &Value) -> String {
    let text = value.to_string().replace('\n', " ");
    match text.char_indices().nth(MAX_SHOWN) {
        Some((end, _)) => format!("{}...", text.get(..end).unwrap_or_default()),
        None => text,
    }
}
