//! Documents that say what instances are to be: read from files or standard input, and written by
//! `get -o yaml`.
//!
//! YAML, which JSON is a part of: a document an instance, or a list of them. A plain number or word
//! isn't taken for text where text is wanted (`team: 1`), so that a file means the same to an editor,
//! to the server and here.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io::{self, Read};
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use serde_saphyr::{DefaultMessageFormatter, Error, MessageFormatter, Spanned};
use toygres_client::resources::InstanceManifest;
use toygres_models::{InstanceKey, Namespace};

use crate::error::CliError;

/// Thousands of instances; more is a file that was meant for something else.
const MAX_BYTES: u64 = 8 << 20;
/// What stands for standard input.
const STDIN: &str = "-";

/// An instance that was asked for.
pub struct Document {
    /// Namespace and name.
    pub key: InstanceKey,
    /// What it is to be.
    pub manifest: InstanceManifest,
    /// Where that stands.
    pub origin: Origin,
}

/// Where a document stands.
pub struct Origin {
    /// The file, or `-`.
    file: String,
    /// Its number in the file, from 1.
    number: usize,
    /// Line and column of each field's value.
    fields: Positions,
}

type Positions = BTreeMap<String, (u64, u64)>;

impl Origin {
    /// `file:line:column (document 2, name)` of a field; of the whole document for `None`.
    pub fn of(&self, field: Option<&str>) -> String {
        let of_field = field.and_then(|field| Some((field, self.fields.get(field)?)));
        let first = || self.fields.values().min().copied().unwrap_or((1, 1));
        match of_field {
            Some((field, (line, column))) => format!("{}:{line}:{column} (document {}, {field})", self.file, self.number),
            None => format!("{}:{} (document {})", self.file, first().0, self.number),
        }
    }

    /// The file, or `-`.
    pub fn file(&self) -> &str {
        &self.file
    }
}

/// Reads all documents of all files. What doesn't name its namespace is in `namespace`.
///
/// # Errors
/// Everything that is wrong with them, each with its place.
pub fn read(files: &[String], namespace: &Namespace) -> Result<Vec<Document>, CliError> {
    let mut documents = Vec::new();
    let mut problems = Vec::new();
    for (index, file) in files.iter().enumerate() {
        if files.iter().take(index).any(|before| before == file) {
            return Err(CliError::usage(format!("{file} is given twice; nothing was changed")));
        }
        parse(file, &text_of(file)?, namespace, &mut documents, &mut problems);
    }
    let mut seen: HashMap<&InstanceKey, &Document> = HashMap::new();
    for document in &documents {
        if let Some(first) = seen.insert(&document.key, document) {
            let (place, first) = (document.origin.of(Some("name")), first.origin.of(Some("name")));
            problems.push(format!("{place}: {} is there twice; the other one is {first}", document.key));
        }
    }
    if !problems.is_empty() {
        return Err(CliError::usage("the documents can't be used; nothing was changed").evidence(problems));
    }
    if documents.is_empty() {
        return Err(CliError::usage(format!("there is no document in {}", files.join(", "))));
    }
    Ok(documents)
}

fn text_of(file: &str) -> Result<String, CliError> {
    let unreadable = |error: io::Error| CliError::usage(format!("{file} can't be read: {error}"));
    let mut bytes = Vec::new();
    let read = if file == STDIN {
        io::stdin().lock().take(MAX_BYTES + 1).read_to_end(&mut bytes)
    } else {
        std::fs::File::open(file).map_err(unreadable)?.take(MAX_BYTES + 1).read_to_end(&mut bytes)
    };
    read.map_err(unreadable)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(CliError::usage(format!("{file} is larger than {} MiB", MAX_BYTES >> 20)));
    }
    String::from_utf8(bytes).map_err(|_| CliError::usage(format!("{file} is not UTF-8 text")))
}

fn options() -> serde_saphyr::Options {
    // No snippet: what stands in a document may be a password.
    serde_saphyr::options! { no_schema: true, strict_booleans: true, reject_unsupported_tags: true, with_snippet: false }
}

/// The documents of one text, and what is wrong with it.
fn parse(file: &str, text: &str, namespace: &Namespace, documents: &mut Vec<Document>, problems: &mut Vec<String>) {
    let mut number = 0;
    let mut positions = positions(text).into_iter();
    for parsed in serde_saphyr::read_with_options::<_, OneOrMany<Map<String, Value>>>(&mut text.as_bytes(), options()) {
        let mut places = positions.next().unwrap_or_default().into_iter();
        let manifests = match parsed {
            Ok(OneOrMany(manifests)) => manifests,
            Err(error) => {
                number += 1;
                let (line, column) = error.location().map_or((1, 1), |at| (at.line(), at.column()));
                let field = places
                    .flat_map(IntoIterator::into_iter)
                    .filter(|(_, place)| *place <= (line, column))
                    .max_by_key(|(_, place)| *place);
                let field = field.map(|(field, _)| format!(", {field}")).unwrap_or_default();
                problems.push(format!("{file}:{line}:{column} (document {number}{field}): {}", describe(&error)));
                continue;
            }
        };
        for manifest in manifests {
            number += 1;
            let origin = Origin { file: file.to_owned(), number, fields: places.next().unwrap_or_default() };
            match checked(manifest, namespace) {
                Ok((key, manifest)) => documents.push(Document { key, manifest, origin }),
                Err((field, problem)) => problems.push(format!("{}: {problem}", origin.of(Some(&field)))),
            }
        }
    }
}

/// An instance as a document says it is to be, or the field that is wrong, and how.
fn checked(document: Map<String, Value>, namespace: &Namespace) -> Result<(InstanceKey, InstanceManifest), (String, String)> {
    let manifest = InstanceManifest::from_map(document).map_err(|error| (error.field, error.problem))?;
    let namespace = manifest.namespace.as_deref().unwrap_or(namespace.as_str());
    let key = InstanceKey::parse(namespace, &manifest.name).and_then(|key| manifest.check().map(|()| key));
    let key = key.map_err(|invalid| (invalid.field.to_owned(), invalid.problem))?;
    Ok((key, manifest))
}

/// Where each document's, and each listed instance's, fields stand.
fn positions(text: &str) -> Vec<Vec<Positions>> {
    type Fields = BTreeMap<String, Spanned<IgnoredAny>>;
    let place = |value: &Spanned<IgnoredAny>| (value.referenced.line(), value.referenced.column());
    let places = |fields: &Fields| fields.iter().map(|(field, value)| (field.clone(), place(value))).collect();
    let mut reader = text.as_bytes();
    serde_saphyr::read_with_options::<_, OneOrMany<Fields>>(&mut reader, options())
        .map(|document| document.map(|OneOrMany(items)| items.iter().map(places).collect()).unwrap_or_default())
        .collect()
}

/// What is wrong, without what stands there: it may be a password.
fn describe(error: &Error) -> String {
    match error.without_snippet() {
        Error::SerdeUnknownField { field, expected, .. } => {
            format!("the field {field:?} is unknown; known are {}", expected.join(", "))
        }
        Error::SerdeMissingField { field, .. } => format!("the field {field} is missing"),
        Error::DuplicateMappingKey { key: Some(key), .. } => format!("the field {key:?} stands there twice"),
        Error::QuotingRequired { .. } => "this has to be text: put it in quotes".into(),
        Error::InvalidScalar { .. } => "this has to be a whole number".into(),
        Error::InvalidBooleanStrict { .. } => "this has to be true or false".into(),
        Error::NullIntoString { .. } => "this has to be text, not null".into(),
        Error::SerdeInvalidType { expected, .. } | Error::SerdeInvalidValue { expected, .. } => {
            format!("this has to be {expected}")
        }
        other => DefaultMessageFormatter.format_message(other).into_owned(),
    }
}

/// A document: one thing, or a list of them. Not serde's `untagged`, which forgets where things stand.
struct OneOrMany<T>(Vec<T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for OneOrMany<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OneOrManyVisitor(PhantomData)).map(Self)
    }
}

struct OneOrManyVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for OneOrManyVisitor<T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an instance (fields and their values), or a list of instances")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Vec<T>, A::Error> {
        Ok(vec![T::deserialize(MapAccessDeserializer::new(map))?])
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Vec<T>, A::Error> {
        Vec::deserialize(SeqAccessDeserializer::new(seq))
    }
}

/// Instances' documents as YAML, which [`read`] understands.
pub fn to_yaml(manifests: &[InstanceManifest]) -> Result<String, CliError> {
    serde_saphyr::to_string_multiple(manifests)
        .map_err(|error| CliError::failed(format!("the answer can't be written as YAML: {error}")))
}

#[cfg(test)]
pub(crate) mod tests;
