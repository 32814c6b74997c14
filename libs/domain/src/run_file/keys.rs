//! Every key of a run file, read off the types that serde reads it into. Tables about keys (bounds, changes
//! on resume) are tested against this list, so that a new key cannot be forgotten in one of them.

use std::cell::RefCell;

use serde::Deserialize;
use serde::de::value::{Error, StrDeserializer};
use serde::de::{DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, SeqAccess, Visitor};

use super::{ConfigError, RunFile};

/// A key of a run file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// Its path, dotted.
    pub path: String,
    /// What it takes.
    pub kind: KeyKind,
}

/// What a key takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// A whole number.
    Whole,
    /// A list of whole numbers.
    Wholes,
    /// A number.
    Real,
    /// true or false.
    Switch,
    /// Text.
    Text,
    /// One of these words.
    Choice(&'static [&'static str]),
}

impl RunFile {
    /// Every key that a run file may have.
    pub fn keys() -> Result<Vec<Key>, ConfigError> {
        let keys = RefCell::new(Vec::new());
        RunFile::deserialize(Tracer { path: String::new(), keys: &keys })
            .map_err(|error| ConfigError::Invalid(format!("cannot list the keys of a run file: {error}")))?;
        Ok(keys.into_inner())
    }
}

/// Deserializer that answers every question with some value and records what was asked for.
struct Tracer<'a> {
    path: String,
    keys: &'a RefCell<Vec<Key>>,
}

impl Tracer<'_> {
    fn record(&self, kind: KeyKind) {
        self.keys.borrow_mut().push(Key { path: self.path.clone(), kind });
    }
}

impl<'de> Deserializer<'de> for Tracer<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.record(KeyKind::Text);
        visitor.visit_str("x")
    }

    fn deserialize_u32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.record(KeyKind::Whole);
        visitor.visit_u32(0)
    }

    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.record(KeyKind::Whole);
        visitor.visit_u64(0)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.record(KeyKind::Real);
        visitor.visit_f64(0.0)
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.record(KeyKind::Switch);
        visitor.visit_bool(false)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.record(KeyKind::Wholes);
        visitor.visit_seq(NoElements)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_map(Fields { parent: self, fields: fields.iter(), current: "" })
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.record(KeyKind::Choice(variants));
        let first: StrDeserializer<'_, Error> =
            variants.first().copied().unwrap_or_default().into_deserializer();
        visitor.visit_enum(first)
    }

    serde::forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u8 u16 u128 f32 char str string bytes byte_buf unit unit_struct tuple tuple_struct map
        identifier ignored_any
    }
}

/// The fields of a section, in order.
struct Fields<'a> {
    parent: Tracer<'a>,
    fields: std::slice::Iter<'static, &'static str>,
    current: &'static str,
}

impl<'de> MapAccess<'de> for Fields<'_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        let Some(field) = self.fields.next() else { return Ok(None) };
        self.current = field;
        let name: StrDeserializer<'_, Error> = self.current.into_deserializer();
        seed.deserialize(name).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Error> {
        let Tracer { path, keys } = &self.parent;
        let path = if path.is_empty() { self.current.to_owned() } else { format!("{path}.{}", self.current) };
        seed.deserialize(Tracer { path, keys })
    }
}

struct NoElements;

impl<'de> SeqAccess<'de> for NoElements {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, _seed: T) -> Result<Option<T::Value>, Error> {
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_those_of_the_types() {
        let keys = RunFile::keys().unwrap();
        let kind = |path: &str| {
            let found: Vec<_> = keys.iter().filter(|key| key.path == path).collect();
            assert_eq!(found.len(), 1, "{path}: {found:?}");
            found[0].kind.clone()
        };
        assert_eq!(kind("run.seed"), KeyKind::Whole);
        assert_eq!(kind("run.stop_grace_seconds"), KeyKind::Real);
        assert_eq!(kind("model.rope_scaling.factor"), KeyKind::Real);
        assert_eq!(kind("ngram.ignored_tokens"), KeyKind::Wholes);
        assert_eq!(kind("training.clip.enabled"), KeyKind::Switch);
        assert_eq!(kind("training.schedule"), KeyKind::Choice(&["constant", "cosine", "wsd"]));
        assert_eq!(kind("topology.min_workers"), KeyKind::Whole);
        assert_eq!(kind("data.train"), KeyKind::Text);
        // Keys written out in a run file are keys of this list.
        let text = include_str!("../../../../configs/longcat-flash-lite.toml");
        let file = RunFile::parse(text, "lite", &[]).unwrap();
        for key in file.origins(text, &[]).unwrap().keys() {
            kind(key);
        }
    }
}
