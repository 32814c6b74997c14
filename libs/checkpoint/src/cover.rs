//! Exact cover: do some parts hold a run's whole state, every piece once? Pure; what is expected comes from the
//! layout, never from the parts.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use polygram_domain::layout::{EXP_AVG, EXP_AVG_SQ, StatePart, state_part};
use polygram_domain::tables::BUCKETS;
use polygram_domain::{RunSpec, Step};

use crate::blocks::BlockSums;
use crate::cover_error::CoverError;
use crate::cursor::Cursor;
use crate::keys;
use crate::object::{Content, ObjectEntry, Part, RowScope, TensorEntry, element_count};
use crate::rows::TableShape;

/// What a tensor is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TensorClass {
    /// A trained parameter.
    Dense,
    /// A router's selection bias.
    RouterBias,
    /// A moment of a trained parameter.
    Optimizer,
}

impl TensorClass {
    /// The class of a tensor by its global name; every name has one.
    pub fn of(name: &str) -> TensorClass {
        if name.starts_with("optimizer.") {
            TensorClass::Optimizer
        } else if name.ends_with(".e_score_correction_bias") {
            TensorClass::RouterBias
        } else {
            TensorClass::Dense
        }
    }
}

/// A tensor that every checkpoint of a run must hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpectedTensor {
    /// Global name.
    pub name: String,
    /// Shape.
    pub shape: Vec<u64>,
    /// What it is for.
    pub class: TensorClass,
}

/// The tensors of a checkpoint of `spec`, in the layout's order, each trained parameter followed by its moments.
pub fn expected_tensors(spec: &RunSpec) -> Vec<ExpectedTensor> {
    let mut tensors = Vec::new();
    for parameter in spec.dense_parameters() {
        let trained = parameter.is_trained();
        let (name, shape) = (parameter.name, parameter.shape);
        let class = if trained { TensorClass::Dense } else { TensorClass::RouterBias };
        tensors.push(ExpectedTensor { name: name.clone(), shape: shape.clone(), class });
        for moment in [EXP_AVG, EXP_AVG_SQ].into_iter().filter(|_| trained) {
            let (name, class) = (format!("{moment}{name}"), TensorClass::Optimizer);
            tensors.push(ExpectedTensor { name, shape: shape.clone(), class });
        }
    }
    tensors
}

/// The tables of a checkpoint of `spec`, in order.
pub fn expected_tables(spec: &RunSpec) -> Vec<TableShape> {
    let state = |width: u32| spec.embedding.state_values(width as usize);
    spec.tables().iter().map(|table| TableShape::of(table, state(table.width))).collect()
}

type Pieces<'a, T> = Vec<(Range<T>, &'a str)>;

/// Checks `parts` against `spec`; gives the position in the data that they agree on.
pub(crate) fn check_cover(
    spec: &RunSpec,
    step: Step,
    parts: &[Part],
) -> Result<(Cursor, Option<u64>), CoverError> {
    check_members(step, parts)?;
    check_tensors(&expected_tensors(spec), parts)?;
    check_tables(&expected_tables(spec), step, parts)?;
    Ok((check_cursor(parts)?, check_decay(spec, parts)?))
}

fn objects(parts: &[Part]) -> impl Iterator<Item = (&str, &ObjectEntry)> {
    parts.iter().flat_map(|part| part.objects.iter().map(|object| (part.member.as_str(), object)))
}

fn check_members(step: Step, parts: &[Part]) -> Result<(), CoverError> {
    let mut members = BTreeSet::new();
    for part in parts {
        let member = part.member.clone();
        if part.step != step {
            return Err(CoverError::AnotherStep { member, found: part.step, expected: step });
        }
        if !members.insert(&part.member) {
            return Err(CoverError::MemberTwice { member });
        }
    }
    let mut writers: BTreeMap<&str, &str> = BTreeMap::new();
    for (member, object) in objects(parts) {
        if let Some(first) = writers.insert(&object.key, member) {
            let (key, first, second) = (object.key.clone(), first.to_owned(), member.to_owned());
            return Err(CoverError::ObjectTwice { key, first, second });
        }
        if let Err(reason) = check_entry(object) {
            let (member, key) = (member.to_owned(), object.key.clone());
            return Err(CoverError::IllegalObject { member, key, reason });
        }
    }
    Ok(())
}

/// Whether an entry agrees with itself.
pub(crate) fn check_entry(object: &ObjectEntry) -> Result<(), String> {
    if object.blake3.len() != 64 || !object.blake3.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(format!("{:?} is no BLAKE3 hash", object.blake3));
    }
    if object.blocks.len() != BlockSums::count(object.bytes) {
        return Err(format!("{} checksums of blocks for {} bytes", object.blocks.len(), object.bytes));
    }
    match &object.content {
        Content::Tensors { tensors } if tensors.is_empty() => Err("it holds no tensor".into()),
        Content::Tensors { tensors } => tensors.iter().try_for_each(|t| check_tensor_entry(t, object.bytes)),
        Content::Rows { table_rows, width, state_values, buckets, rows, table, scope: _ } => {
            let shape = TableShape {
                table: polygram_domain::TableIndex(*table),
                rows: *table_rows,
                width: *width,
                state_values: *state_values,
            };
            if buckets.is_empty() || buckets.end > BUCKETS || *table_rows == 0 {
                return Err(format!("buckets {buckets:?} of a table of {table_rows} rows"));
            }
            let legal = shape.rows_of(buckets);
            if *rows > u64::from(legal.end - legal.start) {
                return Err(format!("{rows} rows in buckets {buckets:?}, which have rows {legal:?}"));
            }
            let length = shape.object_bytes(buckets, *rows);
            if length != Some(object.bytes) {
                return Err(format!("{} bytes for {rows} rows, {length:?} expected", object.bytes));
            }
            Ok(())
        }
    }
}

fn check_tensor_entry(tensor: &TensorEntry, object_bytes: u64) -> Result<(), String> {
    let TensorEntry { name, shape, elements, offset, .. } = tensor;
    let inside = element_count(shape).is_some_and(|total| elements.end <= total);
    let end = elements
        .end
        .checked_sub(elements.start)
        .and_then(|count| count.checked_mul(4))
        .and_then(|bytes| bytes.checked_add(*offset));
    let aligned = offset.is_multiple_of(4);
    if elements.is_empty() || !inside || !aligned || end.is_none_or(|end| end > object_bytes) {
        return Err(format!(
            "elements {elements:?} of {name:?} {shape:?} at byte {offset} of {object_bytes} bytes"
        ));
    }
    Ok(())
}

fn check_tensors(expected: &[ExpectedTensor], parts: &[Part]) -> Result<(), CoverError> {
    let known: BTreeMap<&str, &ExpectedTensor> = expected.iter().map(|t| (t.name.as_str(), t)).collect();
    let mut written: BTreeMap<&str, Pieces<'_, u64>> = BTreeMap::new();
    for (member, object) in objects(parts) {
        let Content::Tensors { tensors } = &object.content else { continue };
        for tensor in tensors {
            let name = tensor.name.as_str();
            let Some(expected) = known.get(name) else { return Err(unknown_tensor(member, name)) };
            if expected.shape != tensor.shape {
                return Err(CoverError::TensorShape {
                    member: member.to_owned(),
                    name: name.to_owned(),
                    found: tensor.shape.clone(),
                    expected: expected.shape.clone(),
                });
            }
            written.entry(name).or_default().push((tensor.elements.clone(), member));
        }
    }
    for tensor in expected {
        let name = &tensor.name;
        let Some(pieces) = written.get_mut(name.as_str()) else { return Err(missing_tensor(name)) };
        let total = element_count(&tensor.shape).unwrap_or(u64::MAX);
        match first_fault(pieces, 0..total) {
            None => {}
            Some(Fault::Hole(Range { start, end })) => {
                return Err(CoverError::MissingElements { name: name.clone(), start, end });
            }
            Some(Fault::Twice(Range { start, end }, first, second)) => {
                return Err(CoverError::ElementsTwice { name: name.clone(), start, end, first, second });
            }
        }
    }
    Ok(())
}

fn moment_of(name: &str) -> Option<&str> {
    match state_part(name) {
        (StatePart::Weight, _) => None,
        (_, parameter) => Some(parameter),
    }
}

fn unknown_tensor(member: &str, name: &str) -> CoverError {
    let (member, name) = (member.to_owned(), name.to_owned());
    match moment_of(&name).map(str::to_owned) {
        Some(parameter) => CoverError::StateWithoutParameter { member, name, parameter },
        None => CoverError::UnknownTensor { member, name },
    }
}

/// The layout lists a parameter before its moments, so a missing moment's parameter is there.
fn missing_tensor(name: &str) -> CoverError {
    match moment_of(name) {
        Some(parameter) => {
            CoverError::ParameterWithoutState { parameter: parameter.to_owned(), name: name.to_owned() }
        }
        None => CoverError::MissingTensor { name: name.to_owned() },
    }
}

/// Rows of one table that the parts hold.
#[derive(Clone, Default)]
struct TableParts<'a> {
    /// Objects of all rows of their buckets.
    all: Pieces<'a, u32>,
    /// Those of them that are of this step, and objects of the rows that changed until this step.
    now: Pieces<'a, u32>,
    /// Buckets of the other ones.
    earlier: Vec<(Range<u32>, Step)>,
}

fn check_tables(expected: &[TableShape], step: Step, parts: &[Part]) -> Result<(), CoverError> {
    let mut written: Vec<TableParts<'_>> = vec![TableParts::default(); expected.len()];
    for (member, object) in objects(parts) {
        let Content::Rows { table, table_rows, width, state_values, buckets, scope, .. } = &object.content
        else {
            continue;
        };
        let (table, member_name) = (*table, || member.to_owned());
        let (Some(shape), Some(parts)) = (expected.get(table as usize), written.get_mut(table as usize))
        else {
            return Err(CoverError::UnknownTable { member: member_name(), table, tables: expected.len() });
        };
        if (shape.rows, shape.width, shape.state_values) != (*table_rows, *width, *state_values) {
            let words = |rows: u32, width: u32, state: u32| {
                format!("{rows} rows of {width} weights and {state} optimizer values")
            };
            return Err(CoverError::TableShape {
                member: member_name(),
                table,
                found: words(*table_rows, *width, *state_values),
                expected: words(shape.rows, shape.width, shape.state_values),
            });
        }
        let piece = (buckets.clone(), member);
        let earlier = keys::step_of_data(&object.key).filter(|written| *written != step);
        match (scope, earlier) {
            (RowScope::All, Some(written)) if written < step => {
                parts.earlier.push((buckets.clone(), written))
            }
            (RowScope::Changed, Some(_)) => {
                return Err(CoverError::StaleChanges {
                    member: member_name(),
                    key: object.key.clone(),
                    step,
                });
            }
            _ => parts.now.push(piece.clone()),
        }
        if *scope == RowScope::All {
            parts.all.push(piece);
        }
    }
    for (shape, parts) in expected.iter().zip(&mut written) {
        let table = shape.table.0;
        let twice = |Range { start, end }, first, second| {
            Err(CoverError::BucketsTwice { table, start, end, first, second })
        };
        match first_fault(&mut parts.all, 0..BUCKETS) {
            None => {}
            Some(Fault::Hole(Range { start, end })) => {
                return Err(CoverError::MissingBuckets { table, start, end });
            }
            Some(Fault::Twice(buckets, first, second)) => return twice(buckets, first, second),
        }
        match first_fault(&mut parts.now, 0..BUCKETS) {
            None => {}
            Some(Fault::Hole(Range { start, end })) => {
                let of_start = parts.earlier.iter().find(|(buckets, _)| buckets.contains(&start));
                let written = of_start.map_or(step, |(_, written)| *written);
                return Err(CoverError::MissingChanges { table, start, end, written });
            }
            Some(Fault::Twice(buckets, first, second)) => return twice(buckets, first, second),
        }
    }
    Ok(())
}

fn check_cursor(parts: &[Part]) -> Result<Cursor, CoverError> {
    let mut cursors = parts.iter().filter_map(|part| part.cursor.map(|cursor| (&part.member, cursor)));
    let (first, first_cursor) = cursors.next().ok_or(CoverError::MissingCursor)?;
    match cursors.find(|(_, cursor)| *cursor != first_cursor) {
        None => Ok(first_cursor),
        Some((second, second_cursor)) => {
            let (first, second) = (first.clone(), second.clone());
            Err(CoverError::CursorsDiffer { first, second, first_cursor, second_cursor })
        }
    }
}

/// How far untouched rows have decayed: known where all rows decay, and said alike by everybody who says it.
fn check_decay(spec: &RunSpec, parts: &[Part]) -> Result<Option<u64>, CoverError> {
    let mut decays = parts.iter().filter_map(|part| part.table_decay.map(|decay| (&part.member, decay)));
    let Some((first, first_decay)) = decays.next() else {
        let is_needed = spec.embedding.all_rows_decay() && !spec.tables().is_empty();
        return if is_needed { Err(CoverError::MissingDecay) } else { Ok(None) };
    };
    match decays.find(|(_, decay)| *decay != first_decay) {
        None => Ok(Some(first_decay)),
        Some((second, second_decay)) => {
            let (first, second) = (first.clone(), second.clone());
            Err(CoverError::DecaysDiffer { first, second, first_decay, second_decay })
        }
    }
}

enum Fault<T> {
    Hole(Range<T>),
    Twice(Range<T>, String, String),
}

/// The first place of `whole` that the pieces (none empty, all inside) do not cover exactly once.
fn first_fault<T: Copy + Ord>(pieces: &mut Pieces<'_, T>, whole: Range<T>) -> Option<Fault<T>> {
    pieces.sort_by_key(|(range, _)| (range.start, range.end));
    let mut next = whole.start;
    let mut previous = "";
    for (range, member) in pieces.iter() {
        if range.start > next {
            return Some(Fault::Hole(next..range.start));
        }
        if range.start < next {
            let twice = range.start..next.min(range.end);
            return Some(Fault::Twice(twice, previous.to_owned(), (*member).to_owned()));
        }
        next = range.end;
        previous = member;
    }
    (next < whole.end).then_some(Fault::Hole(next..whole.end))
}
