//! Held-out sets of a run: their names, and where their tokens are.
//!
//! A run file writes one set as a path (`held_out = "data/held_out"`) or several as a table
//! (`[data.held_out]`, name = path). Both become the same value here: the path alone is a set named
//! [`HeldOutSets::UNNAMED`], and a value that holds only this set is written as a path again. The identities of
//! the sets ([`HeldOutIdentities`]) are written in the same two forms.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Longest name of a set, in characters.
const NAME_CHARACTERS: usize = 32;
/// Sets of one run.
const MAX_SETS: usize = 32;

/// Held-out sets by name, in the order of their names; none where the run has no held-out data.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeldOutSets(BTreeMap<String, String>);

impl HeldOutSets {
    /// Name of the one set that a run file gives as a path, and of synthetic held-out data.
    pub const UNNAMED: &'static str = "held_out";

    /// One set, given by its path alone.
    pub fn one(path: impl Into<String>) -> HeldOutSets {
        HeldOutSets(BTreeMap::from([(Self::UNNAMED.to_owned(), path.into())]))
    }

    /// Sets with names. Errors: an illegal name, an empty path, too many sets.
    pub fn named(sets: impl IntoIterator<Item = (String, String)>) -> Result<HeldOutSets, String> {
        PATHS.checked(sets.into_iter().collect()).map(HeldOutSets)
    }

    /// Name and path of every set, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, path)| (name.as_str(), path.as_str()))
    }

    /// Whether there is no set.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The key of a run file that gives the set `name`.
    pub fn key(&self, name: &str) -> String {
        match only(&self.0) {
            Some(_) => "data.held_out".to_owned(),
            None => format!("data.held_out.{name}"),
        }
    }
}

/// Identities of held-out sets by name: what they held when the run began or was resumed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeldOutIdentities(BTreeMap<String, String>);

impl HeldOutIdentities {
    /// Of sets with names. Errors: an illegal name, an empty identity, too many sets.
    pub fn named(sets: impl IntoIterator<Item = (String, String)>) -> Result<HeldOutIdentities, String> {
        IDENTITIES.checked(sets.into_iter().collect()).map(HeldOutIdentities)
    }

    /// Of the set `name`, if it is known.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// Names of the sets whose identity is known.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

/// A key that has a value for every held-out set.
struct SetsKey {
    key: &'static str,
    /// What each value is.
    value: &'static str,
    expecting: &'static str,
}

const PATHS: SetsKey = SetsKey {
    key: "data.held_out",
    value: "a path without extension",
    expecting: "a path without extension, or a table of names and paths",
};

const IDENTITIES: SetsKey = SetsKey {
    key: "data.held_out_identity",
    value: "the identity of a held-out set",
    expecting: "an identity, or a table of names and identities",
};

impl SetsKey {
    fn checked(&self, sets: BTreeMap<String, String>) -> Result<BTreeMap<String, String>, String> {
        let SetsKey { key, value, .. } = self;
        if sets.is_empty() || sets.len() > MAX_SETS {
            return Err(format!("{key} has {} sets; it must have 1 to {MAX_SETS}", sets.len()));
        }
        for (name, text) in &sets {
            check_name(name)?;
            if text.is_empty() {
                return Err(format!("{key}.{name} is empty; it must be {value}"));
            }
        }
        Ok(sets)
    }

    fn deserialize<'de, D: Deserializer<'de>>(
        &'static self,
        deserializer: D,
    ) -> Result<BTreeMap<String, String>, D::Error> {
        deserializer.deserialize_any(SetsVisitor(self))
    }
}

struct SetsVisitor(&'static SetsKey);

impl<'de> Visitor<'de> for SetsVisitor {
    type Value = BTreeMap<String, String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.expecting)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        if text.is_empty() {
            return Err(E::custom(format!("{} is empty; it must be {}", self.0.key, self.0.value)));
        }
        Ok(BTreeMap::from([(HeldOutSets::UNNAMED.to_owned(), text.to_owned())]))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut sets = BTreeMap::new();
        while let Some((name, text)) = map.next_entry::<String, String>()? {
            sets.insert(name, text);
        }
        self.0.checked(sets).map_err(A::Error::custom)
    }
}

/// The value of the one unnamed set, if that is all there is.
fn only(sets: &BTreeMap<String, String>) -> Option<&String> {
    sets.get(HeldOutSets::UNNAMED).filter(|_| sets.len() == 1)
}

/// Writes one unnamed set as its value alone.
fn serialize<S: Serializer>(sets: &BTreeMap<String, String>, serializer: S) -> Result<S::Ok, S::Error> {
    match only(sets) {
        Some(text) => text.serialize(serializer),
        None => sets.serialize(serializer),
    }
}

/// Checks the name of a held-out set: 1 to 32 lower-case letters, digits, `_` or `-`.
pub fn check_name(name: &str) -> Result<(), String> {
    let is_legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-';
    if (1..=NAME_CHARACTERS).contains(&name.len()) && name.chars().all(is_legal) {
        return Ok(());
    }
    Err(format!(
        "{name:?} is not a name of a held-out set: use 1 to {NAME_CHARACTERS} lower-case letters, digits, _ or -"
    ))
}

impl Serialize for HeldOutSets {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serialize(&self.0, serializer)
    }
}

impl<'de> Deserialize<'de> for HeldOutSets {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<HeldOutSets, D::Error> {
        PATHS.deserialize(deserializer).map(HeldOutSets)
    }
}

impl Serialize for HeldOutIdentities {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serialize(&self.0, serializer)
    }
}

impl<'de> Deserialize<'de> for HeldOutIdentities {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<HeldOutIdentities, D::Error> {
        IDENTITIES.deserialize(deserializer).map(HeldOutIdentities)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run_file::RunFile;

    const TINY: &str = include_str!("../../../configs/tiny.toml");

    /// The tiny run on token files, with `held_out` in its data section.
    fn parse(held_out: &str) -> Result<RunFile, String> {
        let lines: Vec<&str> = TINY.lines().filter(|line| !line.starts_with("synthetic_")).collect();
        let data = format!("[data]\ntrain = \"data/train\"\n{held_out}\n");
        RunFile::parse(&lines.join("\n").replacen("[data]", &data, 1), "run.toml", &[])
            .map_err(|error| error.to_string())
    }

    fn sets(file: &RunFile) -> Vec<(String, String)> {
        let sets = file.data.held_out.clone().unwrap_or_default();
        sets.iter().map(|(name, path)| (name.to_owned(), path.to_owned())).collect()
    }

    #[test]
    fn both_forms_are_one_value_and_read_back() {
        let one = parse("held_out = \"a/b\"").unwrap();
        assert_eq!(sets(&one), [("held_out".to_owned(), "a/b".to_owned())]);
        assert_eq!(one, parse("[data.held_out]\nheld_out = \"a/b\"").unwrap());
        assert!(one.to_toml().unwrap().contains("held_out = \"a/b\""), "old configurations keep their hash");

        let two = parse("[data.held_out]\nwiki = \"w\"\ncode = \"c\"").unwrap();
        assert_eq!(sets(&two), [("code".into(), "c".into()), ("wiki".into(), "w".into())]);
        for file in [one, two, parse("").unwrap()] {
            assert_eq!(RunFile::parse(&file.to_toml().unwrap(), "again", &[]).unwrap(), file);
        }
        let overrides = ["data.held_out.code=\"d\"".to_owned()];
        let text = parse("[data.held_out]\nwiki = \"w\"").unwrap().to_toml().unwrap();
        let more = RunFile::parse(&text, "run.toml", &overrides).unwrap();
        assert_eq!(sets(&more), [("code".into(), "d".into()), ("wiki".into(), "w".into())]);
        let held_out = more.data.held_out.unwrap();
        assert_eq!(held_out.key("wiki"), "data.held_out.wiki");
        assert_eq!(HeldOutSets::one("x").key(HeldOutSets::UNNAMED), "data.held_out");
    }

    #[test]
    fn identities_are_written_as_the_sets_are() {
        let one = parse("held_out = \"a\"\nheld_out_identity = \"x\"").unwrap();
        assert_eq!(one.data.held_out_identity.as_ref().unwrap().get(HeldOutSets::UNNAMED), Some("x"));
        assert!(one.to_toml().unwrap().contains("held_out_identity = \"x\""));
        let two =
            parse("[data.held_out]\nc = \"a\"\nw = \"b\"\n[data.held_out_identity]\nw = \"y\"").unwrap();
        let identities = two.data.held_out_identity.clone().unwrap();
        assert_eq!((identities.get("w"), identities.get("c")), (Some("y"), None));
        for file in [one, two] {
            assert_eq!(RunFile::parse(&file.to_toml().unwrap(), "again", &[]).unwrap(), file);
        }
        for (held_out, words) in [
            ("held_out_identity = \"\"", "data.held_out_identity is empty"),
            ("held_out_identity = 3", "an identity, or a table of names and identities"),
            ("[data.held_out_identity]\nW = \"x\"", "\"W\" is not a name of a held-out set"),
        ] {
            let error = parse(held_out).unwrap_err();
            assert!(error.contains(words), "{held_out}: {error}");
        }
    }

    #[test]
    fn illegal_sets_are_refused_by_name() {
        for (held_out, words) in [
            ("held_out = \"\"", "data.held_out is empty"),
            ("held_out = 3", "a path without extension, or a table of names and paths"),
            ("held_out = [\"a\"]", "a path without extension, or a table of names and paths"),
            ("[data.held_out]", "data.held_out has 0 sets"),
            ("[data.held_out]\nWiki = \"w\"", "\"Wiki\" is not a name of a held-out set"),
            ("[data.held_out]\n\"a b\" = \"w\"", "\"a b\" is not a name of a held-out set"),
            ("[data.held_out]\nwiki = \"\"", "data.held_out.wiki is empty"),
            ("[data.held_out]\nwiki = 7", "string"),
        ] {
            let error = parse(held_out).unwrap_err();
            assert!(error.contains(words), "{held_out}: {error}");
        }
        let many: String = (0..33).map(|n| format!("s{n} = \"x\"\n")).collect();
        assert!(parse(&format!("[data.held_out]\n{many}")).unwrap_err().contains("33 sets"));
        assert!(check_name(&"x".repeat(32)).is_ok() && check_name(&"x".repeat(33)).is_err());
    }
}
