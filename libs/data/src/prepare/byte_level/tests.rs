//! The fast encoder against the crate, on text that is likely to part them.

use proptest::prelude::*;
use serde_json::json;
use tokenizers::Tokenizer;

use super::*;

/// A tokenizer trained by the crate on text of several scripts.
fn trained() -> Value {
    use tokenizers::models::TrainerWrapper;
    use tokenizers::models::bpe::{BPE, BpeTrainer};
    use tokenizers::pre_tokenizers::byte_level::ByteLevel as PreTokenizer;
    let mut tokenizer = Tokenizer::new(BPE::default());
    tokenizer.with_pre_tokenizer(Some(PreTokenizer::new(false, true, true)));
    let mut trainer: TrainerWrapper = BpeTrainer::builder()
        .show_progress(false)
        .vocab_size(900)
        .special_tokens(vec![tokenizers::AddedToken::from("<eos>", true)])
        .initial_alphabet(PreTokenizer::alphabet().into_iter().collect())
        .build()
        .into();
    let texts: Vec<String> = (0..400)
        .map(|i| {
            let words = [
                "naïve",
                "the",
                "it's",
                "日本語",
                "    ",
                "\n\n",
                "WE'LL",
                "aaaa",
                "12345",
                "...",
                "élan",
                "\t",
            ];
            (0..30).map(|j| words[(i * 7 + j * (j + i % 5)) % words.len()]).collect::<Vec<_>>().join(" ")
        })
        .collect();
    tokenizer.train(&mut trainer, texts.iter()).unwrap();
    serde_json::from_str(&tokenizer.to_string(false).unwrap()).unwrap()
}

/// The same model behind every pre-tokenizer and normalizer that is known here.
fn variants() -> Vec<(String, Value)> {
    let base = trained();
    let byte_level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let split = |pattern: &str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
    let deepseek = r"[!\x22#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let sequence = |patterns: &[&str]| {
        let mut steps: Vec<Value> = patterns.iter().map(|pattern| split(pattern)).collect();
        steps.push(byte_level.clone());
        json!({"type": "Sequence", "pretokenizers": steps})
    };
    let mut variants = vec![("gpt-2".to_owned(), base.clone())];
    let mut add = |name: &str, change: &dyn Fn(&mut Value)| {
        let mut variant = base.clone();
        change(&mut variant);
        variants.push((name.to_owned(), variant));
    };
    add("prefix space", &|v| v["pre_tokenizer"]["add_prefix_space"] = json!(true));
    add("llama 3", &|v| v["pre_tokenizer"] = sequence(&[LLAMA3]));
    add("llama 3, whole words", &|v| {
        v["pre_tokenizer"] = sequence(&[LLAMA3]);
        v["model"]["ignore_merges"] = json!(true);
    });
    add("qwen 2", &|v| {
        v["pre_tokenizer"] = sequence(&[QWEN2]);
        v["normalizer"] = json!({"type": "NFC"});
    });
    add("deepseek", &|v| v["pre_tokenizer"] = sequence(&[r"\p{N}{1,3}", r"[一-龥぀-ゟ゠-ヿ]+", deepseek]));
    add("added tokens", &|v| {
        let token = |id: u32, content: &str, normalized: bool| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": normalized, "special": false})
        };
        let list = v["added_tokens"].as_array_mut().unwrap();
        list.extend([token(900, "<think>", false), token(901, "  ", true), token(902, "    ", true)]);
    });
    variants
}

/// Checks `texts`: whole, and in every piece that may be cut off.
fn check(name: &str, json: &Value, texts: &[&str]) {
    let mut library = Tokenizer::from_bytes(serde_json::to_vec(json).unwrap()).unwrap();
    library.set_encode_special_tokens(true);
    let canonical: Value = serde_json::from_str(&library.to_string(false).unwrap()).unwrap();
    let fast = ByteLevel::of(&canonical).unwrap_or_else(|| panic!("{name} is not known"));
    let mut memory = Memory::default();
    for &text in texts {
        let wanted = library.encode_fast(text, false).unwrap().get_ids().to_vec();
        let mut encode = |text: &str, starts: bool, out: &mut Vec<u32>| {
            if fast.takes(text) {
                fast.encode(Piece { text, starts }, &mut memory, out);
            } else {
                out.extend_from_slice(library.encode_fast(text, false).unwrap().get_ids());
            }
        };
        // Twice: from the model and from memory.
        for _ in 0..2 {
            let mut found = Vec::new();
            encode(text, true, &mut found);
            assert_eq!(found, wanted, "{name}: {text:?}");
        }
        if !fast.can_cut() {
            continue;
        }
        for (at, after) in text.char_indices().skip(1) {
            if fast.may_cut(text[..at].chars().next_back().unwrap(), after) {
                let mut found = Vec::new();
                encode(&text[..at], true, &mut found);
                encode(&text[at..], false, &mut found);
                assert_eq!(found, wanted, "{name}: {text:?} cut at {at}");
            }
        }
    }
}

#[test]
fn adversarial_text_gives_the_tokens_of_the_library() {
    let long = format!("{} {}", "a".repeat(5000), "日本語aaaa".repeat(300));
    let texts = [
        "",
        " ",
        "\n",
        "a",
        "it's WE'LL don't 'ſ",
        "a\n\nb  c\n \n",
        "x<eos>y",
        "<eos><eos>",
        " <think> </think>  <think>\n",
        "        eight\n    four  two",
        "e\u{301}cole ﬁ Å \u{212b}",
        "\u{feff}bom",
        "\0\u{1}\u{7f}\u{ad}",
        "日本語。\n日本",
        "12345678 ٣٤٥ ½",
        "🦀👩‍👩‍👧 flag🇩🇪",
        "\r\n\r\n \t\r\n x",
        "\u{a0}\u{3000}\u{2028}x \u{85}",
        "naïve élan aaaaaaaaaaaaaaa",
        "~!@#$%^&*()_+{}|:\"<>?",
        "ˈɪpə ʼn ǅ ß ſt",
        "<think>x",
        "\nx<think>\nx",
        &long,
    ];
    for (name, json) in variants() {
        check(&name, &json, &texts);
    }
}

#[test]
fn parts_that_are_not_known_are_left_to_the_library() {
    let base = trained();
    for (pointer, value) in [
        ("/normalizer", json!({"type": "Lowercase"})),
        ("/pre_tokenizer", json!({"type": "Metaspace", "replacement": "▁"})),
        ("/pre_tokenizer", Value::Null),
        ("/pre_tokenizer/use_regex", json!(false)),
        ("/model/dropout", json!(0.5)),
        ("/model/type", json!("WordPiece")),
    ] {
        let mut other = base.clone();
        *other.pointer_mut(pointer).unwrap() = value.clone();
        assert!(ByteLevel::of(&other).is_none(), "{pointer} = {value}");
    }
    assert!(ByteLevel::of(&base).is_some());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn random_text_gives_the_tokens_of_the_library(
        plain in "([ '\\r\\n\tstrevmldaST.0-9é日\u{301}\u{a0}]|<eos>|<think>|    |aaa|the|\\PC){0,60}",
    ) {
        // Making the tokenizers takes longer than using them: one property for all of them.
        static VARIANTS: std::sync::LazyLock<Vec<(String, Value)>> = std::sync::LazyLock::new(variants);
        for (name, json) in VARIANTS.iter() {
            check(name, json, &[&plain]);
        }
    }
}
