//! The text of one JSON line, and nothing else of it.
//!
//! The other fields are skipped, not parsed: numbers such as NaN, any depth of nesting and broken strings in
//! them do no harm. What is broken in the text itself (half a surrogate pair, bytes that are not UTF-8)
//! becomes U+FFFD, and the caller is told.

/// What a line holds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// Text.
    Text {
        /// The value of the field.
        text: String,
        /// Something of it was broken and is replaced.
        repaired: bool,
    },
    /// The field is null.
    Null,
}

/// The value of `key` in the JSON object that is `line`; of the last one where it stands more than once. The
/// error is a clause about the line.
pub(crate) fn text_of(line: &[u8], key: &str) -> Result<Line, String> {
    let mut scan = Scan { line, at: 0 };
    let Object { found, fields } = scan.object(key)?;
    scan.space();
    if scan.peek().is_some() {
        return Err(format!("it goes on after its JSON object, at byte {}", scan.at + 1));
    }
    match found {
        None => Err(format!(
            "it has no {key:?}; name the field that holds the text (--text-key), one of: {}",
            fields.join(", ")
        )),
        Some(Value::Null) => Ok(Line::Null),
        Some(Value::String(raw)) => {
            let (text, repaired) = unescaped(raw);
            Ok(Line::Text { text, repaired })
        }
        Some(Value::Other(kind)) => Err(format!("its {key:?} is {kind}, and text is needed")),
    }
}

/// What the first object of some bytes says about them.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct FirstObject {
    /// The field has text or is null.
    pub(crate) has_text: bool,
    /// Its fields, the first of them.
    pub(crate) fields: Vec<String>,
    /// Bytes up to its end.
    pub(crate) length: usize,
}

/// The JSON object that `bytes` begin with; `None` where they begin with none, or it is not whole.
pub(crate) fn first_object(bytes: &[u8], key: &str) -> Option<FirstObject> {
    let mut scan = Scan { line: bytes, at: 0 };
    let Object { found, mut fields } = scan.object(key).ok()?;
    let has_text = matches!(found, Some(Value::Null | Value::String(_)));
    if found.is_some() {
        fields.push(key.to_owned());
    }
    Some(FirstObject { has_text, fields, length: scan.at })
}

/// An object, as far as it matters.
struct Object<'a> {
    found: Option<Value<'a>>,
    /// The first of its other fields.
    fields: Vec<String>,
}

/// A value, as far as it matters.
enum Value<'a> {
    Null,
    /// What stands between the quotes.
    String(&'a [u8]),
    /// What it is, with an article.
    Other(&'static str),
}

struct Scan<'a> {
    line: &'a [u8],
    at: usize,
}

impl<'a> Scan<'a> {
    fn peek(&self) -> Option<u8> {
        self.line.get(self.at).copied()
    }

    fn next(&mut self) -> Option<u8> {
        let byte = self.peek();
        self.at += usize::from(byte.is_some());
        byte
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\r' | b'\n')) {
            self.at += 1;
        }
    }

    fn broken(&self, wanted: &str) -> String {
        if self.at >= self.line.len() {
            format!("not a whole JSON object: it ends where {wanted} is due")
        } else {
            format!("not a JSON object: at byte {}, where {wanted} is due", self.at.max(1))
        }
    }

    /// The bytes between the quotes of a string.
    fn string(&mut self) -> Result<&'a [u8], String> {
        if self.next() != Some(b'"') {
            return Err(self.broken("a string"));
        }
        let start = self.at;
        loop {
            let rest = &self.line[self.at..];
            let Some(length) = rest.iter().position(|byte| matches!(byte, b'"' | b'\\')) else {
                self.at = self.line.len();
                return Err(self.broken("the end of a string"));
            };
            self.at += length;
            if rest[length] == b'"' {
                self.at += 1;
                return Ok(&self.line[start..self.at - 1]);
            }
            // The escaped byte cannot end the string.
            self.at = (self.at + 2).min(self.line.len());
        }
    }

    /// An object, up to its closing brace.
    fn object(&mut self, key: &str) -> Result<Object<'a>, String> {
        self.space();
        if self.next() != Some(b'{') {
            return Err("not a JSON object".into());
        }
        let (mut found, mut fields) = (None, Vec::new());
        self.space();
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(Object { found, fields });
        }
        loop {
            self.space();
            let name = unescaped(self.string()?).0;
            self.space();
            if self.next() != Some(b':') {
                return Err(self.broken("a colon"));
            }
            self.space();
            let value = self.value()?;
            if name == key {
                found = Some(value);
            } else if fields.len() < 12 {
                fields.push(name);
            }
            self.space();
            match self.next() {
                Some(b',') => {}
                Some(b'}') => return Ok(Object { found, fields }),
                _ => return Err(self.broken("a comma or the closing brace")),
            }
        }
    }

    fn value(&mut self) -> Result<Value<'a>, String> {
        match self.peek() {
            Some(b'"') => self.string().map(Value::String),
            Some(b'{') => self.nested().map(|()| Value::Other("an object")),
            Some(b'[') => self.nested().map(|()| Value::Other("a list")),
            _ => {
                let start = self.at;
                while self
                    .peek()
                    .is_some_and(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'+' | b'.'))
                {
                    self.at += 1;
                }
                match &self.line[start..self.at] {
                    [] => Err(self.broken("a value")),
                    b"null" => Ok(Value::Null),
                    b"true" | b"false" => Ok(Value::Other("true or false")),
                    _ => Ok(Value::Other("a number")),
                }
            }
        }
    }

    /// Skips an object or a list of any depth.
    fn nested(&mut self) -> Result<(), String> {
        let mut open = Vec::new();
        loop {
            match self.peek() {
                Some(b'"') => drop(self.string()?),
                Some(byte @ (b'{' | b'[')) => {
                    open.push(byte + 2);
                    self.at += 1;
                }
                Some(byte @ (b'}' | b']')) => {
                    if open.pop() != Some(byte) {
                        return Err(self.broken("another bracket"));
                    }
                    self.at += 1;
                    if open.is_empty() {
                        return Ok(());
                    }
                }
                Some(_) => self.at += 1,
                None => return Err(self.broken("a closing bracket")),
            }
        }
    }
}

/// The text of a string's bytes, and whether anything of it was broken.
fn unescaped(raw: &[u8]) -> (String, bool) {
    let mut bytes = Vec::with_capacity(raw.len());
    let mut repaired = false;
    let mut rest = raw;
    while let Some(at) = rest.iter().position(|&byte| byte == b'\\') {
        bytes.extend_from_slice(&rest[..at]);
        let escape = &rest[at + 1..];
        let Some((&kind, mut after)) = escape.split_first() else {
            rest = &[];
            repaired = true;
            break;
        };
        let c = match kind {
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'"' | b'\\' | b'/' => char::from(kind),
            b'u' => match hex(after) {
                Some(unit) => {
                    after = &after[4..];
                    let low = match after {
                        [b'\\', b'u', digits @ ..] if (0xd800..0xdc00).contains(&unit) => hex(digits),
                        _ => None,
                    };
                    match low.filter(|low| (0xdc00..0xe000).contains(low)) {
                        Some(low) => {
                            after = &after[6..];
                            char::from_u32(0x10000 + ((unit - 0xd800) << 10) + (low - 0xdc00))
                        }
                        None => char::from_u32(unit),
                    }
                    .unwrap_or_else(|| {
                        repaired = true;
                        char::REPLACEMENT_CHARACTER
                    })
                }
                None => {
                    repaired = true;
                    char::REPLACEMENT_CHARACTER
                }
            },
            _ => {
                // An escape that JSON does not know; its byte may begin a longer character and stays.
                repaired = true;
                after = escape;
                char::REPLACEMENT_CHARACTER
            }
        };
        bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
        rest = after;
    }
    bytes.extend_from_slice(rest);
    match String::from_utf8(bytes) {
        Ok(text) => (text, repaired),
        Err(error) => (String::from_utf8_lossy(error.as_bytes()).into_owned(), true),
    }
}

/// The number of the first four hexadecimal digits.
fn hex(digits: &[u8]) -> Option<u32> {
    digits.get(..4)?.iter().try_fold(0, |value, &digit| Some(value << 4 | char::from(digit).to_digit(16)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(line: &str) -> (String, bool) {
        match text_of(line.as_bytes(), "text") {
            Ok(Line::Text { text, repaired }) => (text, repaired),
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn other_fields_do_no_harm() {
        for line in [
            r#"{"text":"a"}"#.to_owned(),
            r#" { "score" : NaN , "text" : "a" , "x" : -Infinity } "#.into(),
            format!(r#"{{"m":{}{},"text":"a"}}"#, "[".repeat(5000), "]".repeat(5000)),
            r#"{"m":{"text":"not this","b":[1,{"c":"]}"}]},"text":"a"}"#.into(),
            r#"{"bad":"\ud83d \q","text":"a"}"#.into(),
            r#"{"text":"first","text":"a"}"#.into(),
            r#"{"te\u0078t":"a"}"#.into(),
        ] {
            assert_eq!(text(&line), ("a".into(), false), "{line:.60}");
        }
    }

    #[test]
    fn broken_text_is_replaced() {
        assert_eq!(
            text(r#"{"text":"\u00e9\ud83e\udd80\n\"\\\/\b\f\r\t"}"#),
            ("é🦀\n\"\\/\u{8}\u{c}\r\t".into(), false)
        );
        for (line, wanted) in [
            (r#"{"text":"bad \ud83d here"}"#, "bad \u{fffd} here"),
            (r#"{"text":"\ud83d\ud83e\udd80"}"#, "\u{fffd}🦀"),
            (r#"{"text":"\udd80x"}"#, "\u{fffd}x"),
            (r#"{"text":"\u12"}"#, "\u{fffd}12"),
            (r#"{"text":"\é"}"#, "\u{fffd}é"),
        ] {
            assert_eq!(text(line), (wanted.into(), true), "{line}");
        }
        let raw = b"{\"text\":\"caf\xe9\"}";
        assert_eq!(text_of(raw, "text"), Ok(Line::Text { text: "caf\u{fffd}".into(), repaired: true }));
    }

    #[test]
    fn lines_without_text_are_refused_with_the_reason() {
        assert_eq!(text_of(br#"{"text": null}"#, "text"), Ok(Line::Null));
        for (line, wanted) in [
            ("[1]", "not a JSON object"),
            ("", "not a JSON object"),
            (
                r#"{"body":"x","id":1}"#,
                "it has no \"text\"; name the field that holds the text (--text-key), one of: body, id",
            ),
            (r#"{"text":5}"#, "its \"text\" is a number, and text is needed"),
            (r#"{"text":NaN}"#, "its \"text\" is a number"),
            (r#"{"text":true}"#, "its \"text\" is true or false"),
            (r#"{"text":["a"]}"#, "its \"text\" is a list"),
            (r#"{"text":{"a":1}}"#, "its \"text\" is an object"),
            (r#"{"text":"a"} x"#, "it goes on after its JSON object"),
            (r#"{"text":"a""#, "ends where a comma or the closing brace is due"),
            (r#"{"text":"a"#, "ends where the end of a string is due"),
            (r#"{"text":"a\"#, "ends where the end of a string is due"),
            (r#"{"text" "a"}"#, "a colon is due"),
            (r#"{"text":}"#, "a value is due"),
            (r#"{"m":[1},"text":"a"}"#, "another bracket is due"),
            (r#"{"m":[[],"text":"a"}"#, "another bracket is due"),
            (r#"{text:"a"}"#, "a string is due"),
        ] {
            let error = text_of(line.as_bytes(), "text").unwrap_err();
            assert!(error.contains(wanted), "{line}: {error}");
        }
    }

    #[test]
    fn the_first_object_is_told_from_its_rest() {
        let first = |text: &str| first_object(text.as_bytes(), "text");
        let found = first("{\"a\":1,\"text\":\"x\"}, more").unwrap();
        assert_eq!((found.has_text, found.length), (true, 18));
        assert_eq!(found.fields, ["a", "text"]);
        let found = first("{\"a\":{\"text\":\"x\"}}").unwrap();
        assert_eq!((found.has_text, found.fields), (false, vec!["a".to_owned()]));
        assert!(!first("{\"text\":5}").unwrap().has_text && first("{\"text\":null}").unwrap().has_text);
        assert_eq!((first("{\"a\":\"x"), first("text"), first("")), (None, None, None));
    }

    proptest! {
        #[test]
        fn agrees_with_a_json_library(text in "\\PC{0,30}", other in "\\PC{0,10}", number in any::<f64>()) {
            let line = serde_json::json!({"a": other, "text": text, "n": [number, {"x": other}]}).to_string();
            prop_assert_eq!(text_of(line.as_bytes(), "text"), Ok(Line::Text { text, repaired: false }));
        }

        #[test]
        fn any_bytes_are_taken_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..60), cut in 0usize..40) {
            let _ = text_of(&bytes, "text");
            let line = br#"{"a":[{"b":"\u12"}],"text":"x\ud800y"}"#;
            let _ = text_of(&line[..cut.min(line.len())], "text");
        }
    }
}
