//! Tokens of a Rust file: names, `::` and single punctuation marks, each with its line. Comments, literals
//! and lifetimes are left out, and so are the items under `#[cfg(test)]`.

/// A name or a mark of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token<'a> {
    pub(crate) text: &'a str,
    /// Counted from 1.
    pub(crate) line: usize,
}

impl Token<'_> {
    pub(crate) fn is_name(&self) -> bool {
        self.text.starts_with(|first: char| first.is_alphabetic() || first == '_')
    }
}

/// What begins an item that ends with a semicolon only, however many braces stand before it.
const ENDED_BY_SEMICOLON: [&str; 5] = ["use", "const", "static", "type", "let"];
/// What begins an item in which a comma ends nothing.
const WITH_COMMAS: [&str; 12] =
    ["use", "const", "static", "type", "let", "fn", "struct", "enum", "trait", "impl", "mod", "unsafe"];

/// The tokens of `text` outside tests.
pub(crate) fn tokens(text: &str) -> Vec<Token<'_>> {
    without_tests(&scan(text))
}

fn scan(text: &str) -> Vec<Token<'_>> {
    let bytes = text.as_bytes();
    let mut found = Vec::new();
    let (mut at, mut line) = (0, 1);
    while at < bytes.len() {
        let rest = &text[at..];
        let length = match bytes[at] {
            b'/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            b'/' if rest.starts_with("/*") => block_comment(rest),
            b'"' => 1 + quoted(&rest[1..]),
            b'\'' => quote(rest),
            b'0'..=b'9' => name_length(rest),
            first if first.is_ascii_whitespace() => 1,
            first if first == b'_' || first.is_ascii_alphabetic() => match literal_prefix(rest) {
                Some(length) => length,
                None => {
                    let raw = if rest.starts_with("r#") { 2 } else { 0 };
                    let length = raw + name_length(&rest[raw..]);
                    found.push(Token { text: &rest[raw..length], line });
                    length
                }
            },
            _ => {
                let length =
                    if rest.starts_with("::") { 2 } else { rest.chars().next().map_or(1, char::len_utf8) };
                found.push(Token { text: &rest[..length], line });
                length
            }
        };
        line += rest[..length].matches('\n').count();
        at += length;
    }
    found
}

fn name_length(rest: &str) -> usize {
    rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len())
}

fn block_comment(rest: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        match &rest.as_bytes()[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

/// Bytes up to and with the closing quotation mark; `rest` begins after the opening one.
fn quoted(rest: &str) -> usize {
    let mut escaped = false;
    for (at, byte) in rest.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// Bytes of the character literal or lifetime that `rest` begins with.
fn quote(rest: &str) -> usize {
    let mut chars = rest.char_indices().skip(1);
    match chars.next() {
        Some((_, '\\')) => rest[3..].find('\'').map_or(rest.len(), |end| end + 4),
        Some(_) => match chars.next() {
            Some((end, '\'')) => end + 1,
            _ => 1 + name_length(&rest[1..]),
        },
        None => rest.len(),
    }
}

/// Bytes of a string literal with a prefix (`r"`, `br#"`, `b"`, `c"`, `b'`), if `rest` begins with one.
fn literal_prefix(rest: &str) -> Option<usize> {
    let prefix = rest.find(|c: char| !"brc".contains(c))?;
    let after = &rest[prefix..];
    if prefix == 0 || prefix > 2 {
        return None;
    }
    if rest.starts_with("b'") {
        return Some(1 + quote(after));
    }
    if !rest[..prefix].contains('r') {
        return after.starts_with('"').then(|| prefix + 1 + quoted(&after[1..]));
    }
    let hashes = after.find(|c: char| c != '#')?;
    let body = after[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    Some(prefix + hashes + 1 + body.find(&end).map_or(body.len(), |at| at + end.len()))
}

fn without_tests<'a>(tokens: &[Token<'a>]) -> Vec<Token<'a>> {
    let mut kept = Vec::with_capacity(tokens.len());
    let mut at = 0;
    while at < tokens.len() {
        match attribute(tokens, at) {
            Some(end) if is_of_tests(&tokens[at..end]) => at = item_end(tokens, end),
            Some(end) => at = end,
            None => {
                kept.push(tokens[at]);
                at += 1;
            }
        }
    }
    kept
}

/// The end of the attribute that begins at `at`, if one does.
fn attribute(tokens: &[Token], at: usize) -> Option<usize> {
    let texts = |index: usize| tokens.get(index).map(|token| token.text);
    let open = match (texts(at), texts(at + 1), texts(at + 2)) {
        (Some("#"), Some("["), _) => at + 1,
        (Some("#"), Some("!"), Some("[")) => at + 2,
        _ => return None,
    };
    Some(closing(tokens, open) + 1)
}

/// The index of the bracket that closes the one at `open`.
pub(crate) fn closing(tokens: &[Token], open: usize) -> usize {
    let mut depth = 0;
    for (index, token) in tokens.iter().enumerate().skip(open) {
        match token.text {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return index;
        }
    }
    tokens.len() - 1
}

/// Whether the attribute leaves an item to tests: `cfg(test)`, or `cfg(all(test, …))`.
fn is_of_tests(attribute: &[Token]) -> bool {
    let has = |word: &str| attribute.iter().any(|token| token.text == word);
    attribute[2].text == "cfg" && has("test") && !has("not") && !has("any")
}

/// The index behind the item (or field, or statement) whose attributes go on at `at`.
fn item_end(tokens: &[Token], mut at: usize) -> usize {
    while let Some(end) = attribute(tokens, at) {
        at = end;
    }
    let words: Vec<&str> = tokens[at..].iter().take(6).map(|token| token.text).collect();
    let begins =
        |list: &[&str]| words.iter().take_while(|word| **word != "=").any(|word| list.contains(word));
    let (semicolon_only, commas) =
        (begins(&ENDED_BY_SEMICOLON) && !words.contains(&"fn"), begins(&WITH_COMMAS));
    while at < tokens.len() {
        match tokens[at].text {
            "(" | "[" => at = closing(tokens, at),
            "{" => {
                at = closing(tokens, at);
                if !semicolon_only {
                    return at + 1;
                }
            }
            ")" | "]" | "}" => return at,
            ";" => return at + 1,
            "," if !commas => return at + 1,
            _ => {}
        }
        at += 1;
    }
    at
}
