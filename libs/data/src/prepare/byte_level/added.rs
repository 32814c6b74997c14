//! Added tokens in text: found first, each one token, the text between them left to the model.
//!
//! As `tokenizers` finds them (`added_vocabulary.rs`, `find_matches`) with `encode_special_tokens`: special
//! tokens are text. Those whose spelling is not to be normalized are looked for first.

use std::collections::HashSet;
use std::ops::Range;

use aho_corasick::{AhoCorasick, MatchKind};
use serde_json::Value;

/// The added tokens of a `tokenizer.json`.
pub(crate) struct AddedTokens {
    stages: Vec<Stage>,
    spellings: Vec<String>,
}

/// Tokens that are looked for together.
struct Stage {
    automaton: AhoCorasick,
    /// Token of each pattern; `None` of a special one.
    tokens: Vec<Option<u32>>,
}

/// A part of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Section {
    /// For the model.
    Text(Range<usize>),
    /// An added token.
    Token(u32),
}

impl AddedTokens {
    /// Of the `added_tokens` of a `tokenizer.json`; `None` when one of them is of a kind that only the
    /// library finds.
    pub(crate) fn of(added: &Value) -> Option<AddedTokens> {
        let list = match added {
            Value::Null => &Vec::new(),
            Value::Array(list) => list,
            _ => return None,
        };
        let is = |token: &Value, flag: &str| token[flag].as_bool() == Some(true);
        let special: HashSet<&str> = list
            .iter()
            .filter(|token| is(token, "special"))
            .filter_map(|token| token["content"].as_str())
            .collect();
        let mut stages = [(Vec::new(), Vec::new()), (Vec::new(), Vec::new())];
        for token in list {
            let content = token["content"].as_str().filter(|content| !content.is_empty())?;
            let id = u32::try_from(token["id"].as_u64()?).ok()?;
            let text = special.contains(content);
            if !text && ["single_word", "lstrip", "rstrip"].iter().any(|flag| is(token, flag)) {
                return None;
            }
            let (spellings, tokens) = &mut stages[usize::from(is(token, "normalized"))];
            spellings.push(content.to_owned());
            tokens.push((!text).then_some(id));
        }
        let mut found = AddedTokens { stages: Vec::new(), spellings: Vec::new() };
        for (patterns, tokens) in stages {
            if tokens.iter().any(Option::is_some) {
                // Special tokens count too: what one of them covers is not looked at again.
                found.spellings.extend_from_slice(&patterns);
                let mut builder = AhoCorasick::builder();
                let automaton = builder.match_kind(MatchKind::LeftmostLongest).build(patterns).ok()?;
                found.stages.push(Stage { automaton, tokens });
            }
        }
        Some(found)
    }

    /// What is looked for in text.
    pub(crate) fn spellings(&self) -> &[String] {
        &self.spellings
    }

    /// Calls `visit` with every section of `text`, in order; none is empty.
    pub(crate) fn visit(&self, text: &str, mut visit: impl FnMut(Section)) {
        visit_stages(&self.stages, text, 0, &mut visit);
    }
}

fn visit_stages(stages: &[Stage], text: &str, offset: usize, visit: &mut dyn FnMut(Section)) {
    let Some((stage, rest)) = stages.split_first() else {
        if !text.is_empty() {
            visit(Section::Text(offset..offset + text.len()));
        }
        return;
    };
    let mut end = 0;
    for found in stage.automaton.find_iter(text) {
        if let Some(token) = stage.tokens[found.pattern().as_usize()] {
            visit_stages(rest, &text[end..found.start()], offset + end, visit);
            visit(Section::Token(token));
            end = found.end();
        }
    }
    visit_stages(rest, &text[end..], offset + end, visit);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn tokens_are_found_longest_first_and_special_ones_are_text() {
        let added = AddedTokens::of(&json!([
            {"id": 1, "content": "<eos>", "special": true},
            {"id": 2, "content": "<think>", "special": false},
            {"id": 3, "content": "  ", "special": false, "normalized": true},
            {"id": 4, "content": "    ", "special": false, "normalized": true},
            {"id": 5, "content": "<eos><think>x", "special": true},
        ]))
        .unwrap();
        let sections = |text: &str| {
            let mut found = Vec::new();
            added.visit(text, |section| found.push(section));
            found
        };
        use Section::{Text, Token};
        assert_eq!(
            sections("a<think>b      c<eos>"),
            [Text(0..1), Token(2), Text(8..9), Token(4), Token(3), Text(15..21)]
        );
        assert_eq!(sections("<eos><think>"), [Text(0..5), Token(2)]);
        // A special token hides what it covers, as in the library.
        assert_eq!(sections("<eos><think>x"), [Text(0..13)]);
        assert_eq!(sections(""), []);
        assert!(
            AddedTokens::of(&json!([{"id": 1, "content": "<m>", "special": false, "lstrip": true}]))
                .is_none()
        );
        assert!(
            AddedTokens::of(&json!([{"id": 1, "content": "<m>", "special": true, "lstrip": true}])).is_some()
        );
    }
}
