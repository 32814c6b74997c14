//! Orders as they are written.

use std::path::PathBuf;

use crate::point::Point;

/// The variable that orders faults.
pub const VARIABLE: &str = "POLYGRAM_FAULT";

/// The variable holds something else than faults.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{VARIABLE} orders {order:?}; an order is a sample and a factor, or a crash point, how often it is passed, kill, \
     freeze, terminate or panic, and a folder, or rank, step, phase, and kill, freeze, terminate or panic: {rule}"
)]
pub struct FaultError {
    /// What was ordered.
    pub order: String,
    /// What does not hold.
    pub rule: String,
}

/// What happens to the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Kill,
    Freeze,
    /// Not to itself: whoever started it is told to end.
    Terminate,
    /// Not the process: the thread panics.
    Panic,
}

/// Where it happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// The `nth` time that a crash point is passed.
    Point { point: Point, nth: u64 },
    /// In a phase of a step.
    Phase { step: u64, phase: String },
}

/// A fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Order {
    pub(crate) place: Place,
    pub(crate) kind: Kind,
    /// Where it leaves its mark, to be carried out once.
    pub(crate) once: Option<PathBuf>,
    number: usize,
}

impl Order {
    /// A file name for it.
    pub(crate) fn name(&self) -> String {
        let place = match &self.place {
            Place::Point { point, nth } => format!("{}-{nth}", point.as_str()),
            Place::Phase { step, phase } => format!("{step}-{phase}"),
        };
        format!("{}-{place}", self.number)
    }
}

/// A sample whose loss and row gradients are multiplied.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Poison {
    pub(crate) sample: u64,
    pub(crate) factor: f64,
}

/// The poisoned samples of `text`, which [`parse`] has found legal.
pub(crate) fn poisons(text: &str) -> Vec<Poison> {
    let orders = text.split(';').map(|order| order.split_whitespace().collect::<Vec<&str>>());
    orders.filter_map(|words| poison(&words)?.ok()).collect()
}

/// `sample NUMBER FACTOR`; `None` for another order.
fn poison(words: &[&str]) -> Option<Result<Poison, String>> {
    let ["sample", rest @ ..] = words else { return None };
    let [sample, factor] = rest else { return Some(Err("it has too few or too many words".into())) };
    let factor = factor.parse().map_err(|_| format!("{factor:?} is no factor"));
    Some(number(sample).and_then(|sample| factor.map(|factor| Poison { sample, factor })))
}

/// The orders of `text` that are for the process `index` of `role`. All of them must be legal.
pub(crate) fn parse(text: &str, role: &str, index: u32) -> Result<Vec<Order>, FaultError> {
    let mut orders = Vec::new();
    for (number, text) in text.split(';').map(str::trim).filter(|text| !text.is_empty()).enumerate() {
        let refuse = |rule: &str| FaultError { order: text.to_owned(), rule: rule.to_owned() };
        let words: Vec<&str> = text.split_whitespace().collect();
        if let Some(poison) = poison(&words) {
            poison.map_err(|rule| refuse(&rule))?;
            continue;
        }
        let is_point = words.first().is_some_and(|word| word.contains('.'));
        let parsed = if is_point { point(&words) } else { phase(&words) };
        let Parsed { role: of, index: at, place, rest } = parsed.map_err(|rule| refuse(&rule))?;
        let (kind, once) = match rest {
            [kind] => (kind, None),
            [kind, folder] => (kind, Some(PathBuf::from(folder))),
            _ => return Err(refuse("it has too few or too many words")),
        };
        let kind = match *kind {
            "kill" => Kind::Kill,
            "freeze" => Kind::Freeze,
            "terminate" => Kind::Terminate,
            "panic" => Kind::Panic,
            other => return Err(refuse(&format!("{other:?} is neither kill, freeze, terminate nor panic"))),
        };
        if of == role && at.is_none_or(|at| at == index) {
            orders.push(Order { place, kind, once, number });
        }
    }
    Ok(orders)
}

struct Parsed<'a> {
    role: &'a str,
    index: Option<u32>,
    place: Place,
    rest: &'a [&'a str],
}

fn point<'a>(words: &'a [&'a str]) -> Result<Parsed<'a>, String> {
    let [name, count, rest @ ..] = words else { return Err("it has too few words".into()) };
    let point = Point::named(name).ok_or_else(|| format!("there is no crash point {name:?}"))?;
    let (index, nth) = match count.split_once(':') {
        Some((index, nth)) => (Some(number(index)? as u32), nth),
        None => (None, *count),
    };
    let nth = number(nth)?;
    if nth == 0 {
        return Err("points are passed for the 1st time first".into());
    }
    Ok(Parsed { role: point.role(), index, place: Place::Point { point, nth }, rest })
}

fn phase<'a>(words: &'a [&'a str]) -> Result<Parsed<'a>, String> {
    let [rank, step, phase, rest @ ..] = words else { return Err("it has too few words".into()) };
    let place = Place::Phase { step: number(step)?, phase: (*phase).to_owned() };
    Ok(Parsed { role: "worker", index: Some(number(rank)? as u32), place, rest })
}

fn number(word: &str) -> Result<u64, String> {
    word.parse().map_err(|_| format!("{word:?} is no number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_for_those_they_name() {
        let text = "worker.before_push 3 kill /marks; shard.restored 1:2 freeze; 1 25 exchanging freeze";
        let worker = parse(text, "worker", 1).unwrap();
        let push = Place::Point { point: Point::WorkerBeforePush, nth: 3 };
        let exchanging = Place::Phase { step: 25, phase: "exchanging".into() };
        assert_eq!(worker.iter().map(|order| &order.place).collect::<Vec<_>>(), [&push, &exchanging]);
        assert_eq!(worker[0].once, Some("/marks".into()));
        assert_eq!((worker[0].name().as_str(), worker[1].once.as_ref()), ("0-worker.before_push-3", None));
        assert_eq!(parse(text, "worker", 0).unwrap().len(), 1);
        assert_eq!(parse(text, "shard", 1).unwrap()[0].kind, Kind::Freeze);
        assert!(parse(text, "shard", 0).unwrap().is_empty() && parse("", "shard", 0).unwrap().is_empty());
    }

    #[test]
    fn samples_are_poisoned_by_their_number() {
        let text = "sample 400 1e6; worker.joined 1 kill; sample 7 nan";
        assert_eq!(parse(text, "worker", 0).unwrap().len(), 1);
        let found = poisons(text);
        assert_eq!((found.len(), found[0]), (2, Poison { sample: 400, factor: 1e6 }));
        assert!(found[1].sample == 7 && found[1].factor.is_nan());
        for wrong in ["sample 4", "sample x 2", "sample 4 much", "sample 1 2 3"] {
            assert!(parse(wrong, "shard", 0).unwrap_err().to_string().contains(wrong), "{wrong}");
        }
    }

    #[test]
    fn nonsense_is_refused_whoever_it_is_for() {
        for wrong in [
            "1 25 exchanging",
            "1 x exchanging kill",
            "1 25 computing stop",
            "worker.joined kill",
            "worker.joined 0 kill",
            "worker.nowhere 1 kill",
            "shard.restored 1:x kill",
            "worker.joined 1 kill /a /b",
        ] {
            let error = parse(wrong, "coordinator", 0).unwrap_err();
            assert!(error.to_string().contains(wrong), "{wrong}: {error}");
        }
    }

    #[test]
    fn every_point_is_found_by_its_name() {
        let names: std::collections::BTreeSet<&str> = Point::ALL.iter().map(|point| point.as_str()).collect();
        assert_eq!(names.len(), Point::ALL.len());
        for point in Point::ALL {
            assert_eq!(Point::named(point.as_str()), Some(*point));
            assert!(["worker", "shard", "coordinator"].contains(&point.role()), "{point:?}");
        }
        assert!(names.len() >= 25);
    }
}
