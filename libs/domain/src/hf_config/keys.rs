//! Reads the keys of a JSON object one by one. Every error names its key, and [`Keys::unread`] lists the keys
//! that were not read, so that none is ignored by accident.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use serde_json::{Map, Value};

/// The keys of one object. A key whose value is null counts as missing, as it does for the tools that write
/// null.
#[derive(Debug)]
pub(super) struct Keys<'a> {
    object: &'a Map<String, Value>,
    /// What stands before a key in messages: "" or "rope_scaling.".
    prefix: &'static str,
    /// Keys that were read, missing ones included.
    read: RefCell<BTreeSet<String>>,
}

impl<'a> Keys<'a> {
    pub(super) fn new(prefix: &'static str, object: &'a Map<String, Value>) -> Keys<'a> {
        Keys { object, prefix, read: RefCell::default() }
    }

    /// The value of `key`, unless it is missing or null.
    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.read.borrow_mut().insert(key.to_owned());
        self.object.get(key).filter(|value| !value.is_null())
    }

    /// `key` with the prefix of its object.
    pub(super) fn name(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// The error for a key that must be there and is not.
    pub(super) fn missing(&self, key: &str) -> String {
        format!("{} is missing", self.name(key))
    }

    /// The error for a value that is not `wanted`.
    pub(super) fn wrong(&self, key: &str, value: &Value, wanted: &str) -> String {
        format!("{} is {}; it must be {wanted}", self.name(key), shown(value))
    }

    /// A whole number within `range`, if the key is there.
    pub(super) fn whole(&self, key: &str, range: RangeInclusive<u32>) -> Result<Option<u32>, String> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_u64().and_then(|number| u32::try_from(number).ok()) {
            Some(number) if range.contains(&number) => Ok(Some(number)),
            _ => {
                let wanted = format!("a whole number from {} to {}", range.start(), range.end());
                Err(self.wrong(key, value, &wanted))
            }
        }
    }

    /// A number within `range`, if the key is there.
    pub(super) fn number(&self, key: &str, range: RangeInclusive<f64>) -> Result<Option<f64>, String> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_f64() {
            Some(number) if range.contains(&number) => Ok(Some(number)),
            _ => {
                let wanted = format!("a number from {} to {}", plain(*range.start()), plain(*range.end()));
                Err(self.wrong(key, value, &wanted))
            }
        }
    }

    /// A whole number that must be there.
    pub(super) fn required(&self, key: &str, range: RangeInclusive<u32>) -> Result<u32, String> {
        self.whole(key, range)?.ok_or_else(|| self.missing(key))
    }

    /// A number that must be there.
    pub(super) fn required_number(&self, key: &str, range: RangeInclusive<f64>) -> Result<f64, String> {
        self.number(key, range)?.ok_or_else(|| self.missing(key))
    }

    /// A text, if the key is there.
    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>, String> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| self.wrong(key, value, "a text"))
    }

    /// True or false, if the key is there.
    pub(super) fn boolean(&self, key: &str) -> Result<Option<bool>, String> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| self.wrong(key, value, "true or false"))
    }

    /// Keys that have a value and were not read.
    pub(super) fn unread(&self) -> Vec<(&'a str, &'a Value)> {
        let read = self.read.borrow();
        let others = self.object.iter().filter(|(key, value)| !value.is_null() && !read.contains(*key));
        others.map(|(key, value)| (key.as_str(), value)).collect()
    }
}

/// A value in an error message: JSON, cut where it is long.
pub(super) fn shown(value: &Value) -> String {
    const LONGEST: usize = 60;
    let text = value.to_string();
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// A bound of a range: short for large and small numbers.
fn plain(number: f64) -> String {
    if number != 0.0 && !(1e-3..1e6).contains(&number.abs()) {
        format!("{number:e}")
    } else {
        number.to_string()
    }
}
