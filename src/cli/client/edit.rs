//! What a typed line means, and how it changes the document.

use std::fmt;

use automerge::{
    Automerge, AutomergeError, ObjId, ObjType, Prop, ROOT, ReadDoc, ScalarValue, TextEncoding,
    hydrate,
    transaction::{Transactable, Transaction},
};
use serde_json::Value;

use crate::base::text::Count;

/// What can be typed: the answer to `help`, and part of `--help`.
pub(super) const GRAMMAR: &str = "\
A line changes the document:
  KEY = VALUE     sets a key; VALUE is JSON, or plain text without quotes
  KEY += VALUE    appends to a list, which is made if it is missing
  delete KEY      removes a key or an element
  help            shows this
KEY is a path such as title, owner.name, todos[0] or todos[0].done. Maps on the way are made if they
are missing. A key with other characters is quoted: \"my key\" = 3.
End of input (Ctrl-D) or Ctrl-C ends the program when everything that was typed is saved.
";

/// A typed line.
#[derive(Debug, PartialEq)]
pub(super) enum Line {
    /// Nothing to do.
    Empty,
    Help,
    Edit(Edit),
}

/// A change of the document.
#[derive(Debug, PartialEq)]
pub(super) struct Edit {
    path: Path,
    action: Action,
}

#[derive(Debug, PartialEq)]
enum Action {
    Set(Value),
    Append(Value),
    Delete,
}

/// Where a value is in a document. It has at least one step.
#[derive(Debug, PartialEq)]
struct Path(Vec<Prop>);

/// Why a line changes nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum EditError {
    #[error("expected KEY = VALUE, KEY += VALUE or delete KEY; `help` says more")]
    Form,
    #[error("{0:?} is not a key: expected one such as title, owner.name or todos[0]")]
    Key(String),
    #[error("no value follows; an empty text is \"\"")]
    NoValue,
    #[error("the value is not valid JSON: {0}; quote a text that begins with {{, [ or \"")]
    Json(serde_json::Error),
    #[error("{0} does not exist")]
    Missing(String),
    #[error("{0} is not a {1}")]
    Kind(String, &'static str),
    #[error("{0}: the list has {1}; KEY += VALUE appends one")]
    Index(String, Count<usize>),
    #[error(transparent)]
    Automerge(#[from] AutomergeError),
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (depth, step) in self.0.iter().enumerate() {
            match step {
                Prop::Seq(index) => write!(f, "[{index}]")?,
                Prop::Map(key) if depth == 0 => f.write_str(key)?,
                Prop::Map(key) => write!(f, ".{key}")?,
            }
        }
        Ok(())
    }
}

impl Path {
    /// The first `steps` steps, for messages.
    fn first(&self, steps: usize) -> String {
        Self(self.0.iter().take(steps).cloned().collect()).to_string()
    }

    /// Parses a path at the beginning of `text`. Returns it with the rest of the text.
    fn parse(text: &str) -> Result<(Self, &str), EditError> {
        let bad = || EditError::Key(text.split_whitespace().next().unwrap_or_default().to_owned());
        let mut steps = Vec::new();
        let mut rest = text;
        loop {
            if let Some(after) = rest.strip_prefix('[').filter(|_| !steps.is_empty()) {
                let (index, after) = after.split_once(']').ok_or_else(bad)?;
                steps.push(Prop::Seq(index.trim().parse().map_err(|_| bad())?));
                rest = after;
            } else if steps.is_empty() || rest.starts_with('.') {
                let key = if steps.is_empty() { rest } else { rest.get(1..).unwrap_or_default() };
                let (key, after) = Self::key(key).ok_or_else(bad)?;
                steps.push(Prop::Map(key));
                rest = after;
            } else {
                return Ok((Self(steps), rest));
            }
        }
    }

    /// Parses a key at the beginning of `text`: a JSON string, or characters without a meaning in
    /// paths.
    fn key(text: &str) -> Option<(String, &str)> {
        if text.starts_with('"') {
            let mut values = serde_json::Deserializer::from_str(text).into_iter::<String>();
            let key = values.next()?.ok()?;
            return Some((key, text.get(values.byte_offset()..)?));
        }
        let is_end = |c: char| c.is_whitespace() || ".[]=+\"".contains(c);
        let (key, rest) = text.split_at(text.find(is_end).unwrap_or(text.len()));
        (!key.is_empty()).then(|| (key.to_owned(), rest))
    }
}

impl Line {
    /// Parses a line.
    pub(super) fn parse(line: &str) -> Result<Self, EditError> {
        let line = line.trim();
        match line {
            "" => return Ok(Self::Empty),
            "help" | "?" => return Ok(Self::Help),
            _ => {}
        }
        let (path, rest) = Path::parse(line)?;
        let rest = rest.trim_start();
        if let Some(value) = rest.strip_prefix("+=") {
            return Ok(Self::Edit(Edit { path, action: Action::Append(parse_value(value)?) }));
        }
        if let Some(value) = rest.strip_prefix('=') {
            return Ok(Self::Edit(Edit { path, action: Action::Set(parse_value(value)?) }));
        }
        let named = line.strip_prefix("delete").filter(|named| named.starts_with(' '));
        let (path, rest) = Path::parse(named.ok_or(EditError::Form)?.trim_start())?;
        if !rest.is_empty() {
            return Err(EditError::Form);
        }
        Ok(Self::Edit(Edit { path, action: Action::Delete }))
    }
}

/// Parses JSON, or takes the text as it is if it does not look like JSON.
fn parse_value(text: &str) -> Result<Value, EditError> {
    let text = text.trim();
    match serde_json::from_str(text) {
        Ok(value) => Ok(value),
        Err(_) if text.is_empty() => Err(EditError::NoValue),
        Err(error) if text.starts_with(['{', '[', '"']) => Err(EditError::Json(error)),
        Err(_) => Ok(Value::String(text.to_owned())),
    }
}

impl Edit {
    /// Changes the document. If it fails, nothing is changed.
    pub(super) fn apply(self, doc: &mut Automerge) -> Result<(), EditError> {
        let done = doc.transact(|transaction| self.write(transaction));
        done.map(|_| ()).map_err(|failure| failure.error)
    }

    fn write(self, doc: &mut Transaction<'_>) -> Result<(), EditError> {
        let Self { path, action } = self;
        match action {
            Action::Set(value) => {
                let (parent, prop) = parent(doc, &path)?;
                set(doc, &path, &parent, prop, &value)
            }
            Action::Append(value) => {
                let list = object(doc, &path, path.0.len(), ObjType::List)?;
                let end = doc.length(&list);
                put(doc, &list, Prop::Seq(end), &value, true)
            }
            Action::Delete => {
                let missing = || EditError::Missing(path.to_string());
                let mut at = ROOT;
                for step in path.0.iter().take(path.0.len() - 1) {
                    let (_, found) = get(doc, &at, step)?.ok_or_else(missing)?;
                    at = found;
                }
                let last = path.0.last().cloned().ok_or_else(missing)?;
                get(doc, &at, &last)?.ok_or_else(missing)?;
                Ok(doc.delete(&at, last)?)
            }
        }
    }
}

/// What is at `step` of an object. Nothing if the step is of another kind than the object.
fn get(
    doc: &Transaction<'_>,
    at: &ObjId,
    step: &Prop,
) -> Result<Option<(Option<ObjType>, ObjId)>, EditError> {
    let is_list = matches!(doc.object_type(at), Ok(ObjType::List));
    let is_map = matches!(doc.object_type(at), Ok(ObjType::Map | ObjType::Table));
    let fits = if matches!(step, Prop::Seq(_)) { is_list } else { is_map };
    let found = if fits { doc.get(at, step.clone())? } else { None };
    Ok(found.map(|(value, id)| (value.to_objtype(), id)))
}

/// The map or list that has the last step of a path; what is missing before it is made.
fn parent(doc: &mut Transaction<'_>, path: &Path) -> Result<(ObjId, Prop), EditError> {
    let last = path.0.last().cloned().ok_or(EditError::Form)?;
    let kind = kind_for(&last);
    Ok((object(doc, path, path.0.len() - 1, kind)?, last))
}

fn kind_for(step: &Prop) -> ObjType {
    if matches!(step, Prop::Seq(_)) { ObjType::List } else { ObjType::Map }
}

/// The object after the first `steps` steps of a path, which must be of this `kind`. Objects that
/// are missing are made.
fn object(
    doc: &mut Transaction<'_>,
    path: &Path,
    steps: usize,
    kind: ObjType,
) -> Result<ObjId, EditError> {
    let mut at = ROOT;
    for (depth, step) in path.0.iter().enumerate().take(steps) {
        let next = path.0.get(depth + 1).filter(|_| depth + 1 < steps);
        let wanted = next.map_or(kind, kind_for);
        let is_same = |found: ObjType| match wanted {
            ObjType::List => found == ObjType::List,
            _ => matches!(found, ObjType::Map | ObjType::Table),
        };
        at = match get(doc, &at, step)? {
            Some((Some(found), id)) if is_same(found) => id,
            Some(_) => {
                let name = if wanted == ObjType::List { "list" } else { "map" };
                return Err(EditError::Kind(path.first(depth + 1), name));
            }
            None => {
                let insert = check_index(doc, &at, path.first(depth + 1), step)?;
                let empty = if wanted == ObjType::List {
                    hydrate::Value::list()
                } else {
                    hydrate::Value::map()
                };
                doc.batch_create_object(&at, step.clone(), &empty, insert)?
            }
        };
    }
    Ok(at)
}

/// Checks that an element with this index exists, or would be the next. Returns whether it would.
fn check_index(
    doc: &Transaction<'_>,
    list: &ObjId,
    name: String,
    step: &Prop,
) -> Result<bool, EditError> {
    let Prop::Seq(index) = step else { return Ok(false) };
    let length = doc.length(list);
    if *index > length {
        Err(EditError::Index(name, Count(length, "element")))
    } else {
        Ok(*index == length)
    }
}

/// Sets what is at `prop`. A text that is there is edited, so that concurrent edits of it merge.
fn set(
    doc: &mut Transaction<'_>,
    path: &Path,
    parent: &ObjId,
    prop: Prop,
    value: &Value,
) -> Result<(), EditError> {
    if let (Value::String(new), Some((Some(ObjType::Text), text))) =
        (value, get(doc, parent, &prop)?)
    {
        return Ok(doc.update_text(&text, new)?);
    }
    let insert = check_index(doc, parent, path.to_string(), &prop)?;
    put(doc, parent, prop, value, insert)
}

/// Puts a value, or inserts it into a list.
fn put(
    doc: &mut Transaction<'_>,
    parent: &ObjId,
    prop: Prop,
    value: &Value,
    insert: bool,
) -> Result<(), EditError> {
    match (from_json(value, doc.text_encoding()), prop) {
        (hydrate::Value::Scalar(scalar), Prop::Seq(index)) if insert => {
            doc.insert(parent, index, scalar)?;
        }
        (hydrate::Value::Scalar(scalar), prop) => doc.put(parent, prop, scalar)?,
        (object, prop) => _ = doc.batch_create_object(parent, prop, &object, insert)?,
    }
    Ok(())
}

/// Texts become text objects, which JavaScript clients show as strings.
fn from_json(value: &Value, encoding: TextEncoding) -> hydrate::Value {
    let scalar = |scalar: ScalarValue| hydrate::Value::Scalar(scalar);
    match value {
        Value::Null => scalar(ScalarValue::Null),
        Value::Bool(value) => scalar((*value).into()),
        Value::Number(number) => match number.as_i64() {
            Some(whole) => scalar(whole.into()),
            None => scalar(number.as_f64().unwrap_or_default().into()),
        },
        Value::String(text) => hydrate::Value::text(encoding, text),
        Value::Array(values) => {
            let values = values.iter().map(|value| from_json(value, encoding));
            values.collect::<Vec<_>>().into()
        }
        Value::Object(map) => {
            let entries = map.iter().map(|(key, value)| (key.as_str(), from_json(value, encoding)));
            entries.collect::<std::collections::HashMap<_, _>>().into()
        }
    }
}

#[cfg(test)]
mod tests {
    use automerge::AutoSerde;
    use serde_json::json;

    use super::*;

    /// Applies lines to an empty document. Returns it as JSON, and what went wrong.
    fn type_in(lines: &[&str]) -> (Value, Vec<String>) {
        let mut doc = Automerge::new();
        let mut problems = Vec::new();
        for line in lines {
            let applied = Line::parse(line).and_then(|line| match line {
                Line::Edit(edit) => edit.apply(&mut doc),
                Line::Empty | Line::Help => Ok(()),
            });
            problems.extend(applied.err().map(|error| error.to_string()));
        }
        (serde_json::to_value(AutoSerde::from(&doc)).expect("JSON"), problems)
    }

    #[test]
    fn values_are_json_or_plain_text() {
        let lines = [
            "title = Buy milk",
            "n=3",
            "share = 0.5",
            "big = 18446744073709551615",
            "done = false",
            "nothing = null",
            r#"quoted = "3""#,
            r#"nested = {"list": [1, "two", {"three": []}], "empty": {}}"#,
            r#""my key" = = 4"#,
        ];
        let expected = json!({
            "title": "Buy milk", "n": 3, "share": 0.5, "big": 18446744073709551615.0, "done": false,
            "nothing": null, "quoted": "3",
            "nested": {"list": [1, "two", {"three": []}], "empty": {}},
            "my key": "= 4",
        });
        assert_eq!(type_in(&lines), (expected, vec![]));
    }

    #[test]
    fn paths_lead_into_maps_and_lists_and_make_what_is_missing() {
        let lines = [
            "owner.name = Anna",
            "todos += milk",
            r#"todos += {"text": "bread"}"#,
            "todos[1].done = true",
            "todos[0] = oat milk",
            "todos[2] = tea",
            "grid[0][0] = 1",
            "owner.name = Anne",
            "delete todos[2]",
            "delete = me",
            "delete delete",
        ];
        let expected = json!({
            "owner": {"name": "Anne"},
            "todos": ["oat milk", {"text": "bread", "done": true}],
            "grid": [[1]],
        });
        assert_eq!(type_in(&lines), (expected, vec![]));
    }

    #[test]
    fn a_line_that_cannot_be_applied_changes_nothing_and_says_why() {
        let lines = [
            "title = a",
            "hello",
            "title =",
            "list = [1",
            "title.x = 1",
            "title += b",
            "new.list[3] = 1",
            "delete missing",
            "delete title.x",
            "delete title x",
            "[0] = 1",
            "a..b = 1",
        ];
        let (doc, problems) = type_in(&lines);
        assert_eq!(doc, json!({"title": "a"}));
        assert_eq!(
            problems,
            [
                "expected KEY = VALUE, KEY += VALUE or delete KEY; `help` says more",
                "no value follows; an empty text is \"\"",
                "the value is not valid JSON: EOF while parsing a list at line 1 column 2; quote a \
                 text that begins with {, [ or \"",
                "title is not a map",
                "title is not a list",
                "new.list[3]: the list has 0 elements; KEY += VALUE appends one",
                "missing does not exist",
                "title.x does not exist",
                "expected KEY = VALUE, KEY += VALUE or delete KEY; `help` says more",
                "\"[0]\" is not a key: expected one such as title, owner.name or todos[0]",
                "\"a..b\" is not a key: expected one such as title, owner.name or todos[0]",
            ]
        );
    }

    #[test]
    fn a_text_that_is_set_again_merges_with_a_concurrent_edit() {
        let edit = |doc: &mut Automerge, line: &str| match Line::parse(line) {
            Ok(Line::Edit(edit)) => edit.apply(doc).expect("applies"),
            other => panic!("{other:?}"),
        };
        let mut ours = Automerge::new();
        edit(&mut ours, "title = milk");
        let mut theirs = ours.fork();
        edit(&mut ours, "title = oat milk");
        edit(&mut theirs, "title = milk and bread");
        ours.merge(&mut theirs).expect("merges");
        let merged = serde_json::to_value(AutoSerde::from(&ours)).expect("JSON");
        assert_eq!(merged, json!({"title": "oat milk and bread"}));
    }
}
