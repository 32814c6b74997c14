//! The model's dense state under its global names: weights `<name>`, moments `optimizer.exp_avg.<name>` and
//! `optimizer.exp_avg_sq.<name>`. Selection biases have no moments.

use std::collections::HashMap;
use std::ops::Range;

use polygram_domain::layout::{EXP_AVG, EXP_AVG_SQ, StatePart, StateView, state_part};

use crate::decoder::Model;
use crate::error::{ModelError, Result};

impl Model {
    /// The state that this rank is the one to keep: the part of the weights that it updates, in the layout's order, then,
    /// if there is an optimizer, its first moments, then its second ones. All of it where there is one rank.
    pub fn state(&self) -> Vec<StateView<'_>> {
        let layout = &self.weights.layout;
        let view = |prefix: &str, name: &str, shape, elements: Range<usize>, values| StateView {
            name: format!("{prefix}{name}"),
            shape,
            elements,
            values,
        };
        let own = layout.buckets().iter().flat_map(|bucket| layout.within(bucket.own.clone()));
        let mut state: Vec<StateView<'_>> = own
            .map(|(entry, elements)| {
                let start = entry.range.start;
                let values = &self.weights()[start + elements.start..start + elements.end];
                view("", &entry.spec.name, &entry.spec.shape, elements, values)
            })
            .collect();
        if let Some(adamw) = &self.adamw {
            for (prefix, moments) in [(EXP_AVG, adamw.exp_avg()), (EXP_AVG_SQ, adamw.exp_avg_sq())] {
                for (range, at) in adamw.places() {
                    for (entry, elements) in layout.within(range.clone()) {
                        let values = &moments[at..at + range.len()];
                        state.push(view(prefix, &entry.spec.name, &entry.spec.shape, elements, values));
                    }
                }
            }
        }
        state
    }

    /// Writes `values` over the elements from `start` on of one tensor of the state; of moments, what this rank keeps of
    /// them. Call [`Model::state_written`] after the last one and before computing.
    pub fn write_state(&mut self, name: &str, shape: &[u64], start: usize, values: &[f32]) -> Result<()> {
        let problem = |problem: String| ModelError::State { name: name.to_owned(), problem };
        let (part, parameter) = state_part(name);
        let entry = self.weights.entry(parameter)?;
        if part != StatePart::Weight && !entry.spec.is_trained() {
            return Err(problem("selection biases have no moments".into()));
        }
        if entry.spec.shape != shape {
            return Err(problem(format!("has shape {shape:?}, but the model has {:?}", entry.spec.shape)));
        }
        let end = start.checked_add(values.len()).filter(|&end| end <= entry.range.len());
        let Some(end) = end else {
            return Err(problem(format!("elements from {start} on: {} values do not fit", values.len())));
        };
        let range = entry.range.start + start..entry.range.start + end;
        match (part, &mut self.adamw) {
            (StatePart::Weight, _) => self.weights.master.as_mut_slice()[range].copy_from_slice(values),
            (_, None) => return Err(problem("the model has no optimizer".into())),
            (part, Some(adamw)) => adamw.restore(part, &range, values),
        }
        Ok(())
    }

    /// Takes what [`Model::write_state`] has written into use.
    pub fn state_written(&mut self) -> Result<()> {
        self.weights.refresh()
    }

    /// Fills the weights: `fill(name, shape, values)` is called once for every tensor that this rank holds, in the
    /// layout's order, and writes its values. After an error they are partly filled and must not be used.
    pub fn load_weights<E: From<ModelError>>(
        &mut self,
        mut fill: impl FnMut(&str, &[u64], &mut [f32]) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let flat = self.weights.master.as_mut_slice();
        for entry in self.weights.layout.entries() {
            fill(&entry.spec.name, &entry.spec.shape, &mut flat[entry.range.clone()])?;
        }
        self.weights.refresh().map_err(E::from)
    }

    /// Fills the whole state from named values; a name too many, a missing one, or a wrong length is an error.
    pub fn import_state(&mut self, mut tensors: HashMap<String, Vec<f32>>) -> Result<()> {
        let wanted = |view: StateView<'_>| (view.name, view.shape.to_vec(), view.elements);
        let wanted: Vec<_> = self.state().into_iter().map(wanted).collect();
        for (name, shape, elements) in wanted {
            let found = tensors
                .remove(&name)
                .ok_or_else(|| ModelError::State { name: name.clone(), problem: "missing".into() })?;
            if found.len() != elements.len() {
                return Err(ModelError::State {
                    name,
                    problem: format!("has {} values, but its shape is {shape:?}", found.len()),
                });
            }
            self.write_state(&name, &shape, elements.start, &found)?;
        }
        self.state_written()?;
        match tensors.into_keys().min() {
            Some(name) => {
                Err(ModelError::State { name, problem: "the model has no tensor of this name".into() })
            }
            None => Ok(()),
        }
    }
}
