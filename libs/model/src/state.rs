//! The model's dense state under its global names: weights `<name>`, moments `optimizer.exp_avg.<name>` and
//! `optimizer.exp_avg_sq.<name>`. Selection biases have no moments.

use std::collections::HashMap;

use crate::decoder::Model;
use crate::error::{ModelError, Result};

const FIRST_MOMENT: &str = "optimizer.exp_avg.";
const SECOND_MOMENT: &str = "optimizer.exp_avg_sq.";

/// One tensor of the state, borrowed.
#[derive(Clone, Debug, PartialEq)]
pub struct StateView<'a> {
    /// Global name.
    pub name: String,
    /// Name of the parameter that it belongs to: its own for a weight.
    pub parameter: &'a str,
    /// Shape.
    pub shape: &'a [u64],
    /// Values, row-major.
    pub values: &'a [f32],
}

impl Model {
    /// Every tensor of the state: all weights in the layout's order, then, if there is an optimizer, all first moments,
    /// then all second moments.
    pub fn state(&self) -> Vec<StateView<'_>> {
        let mut parts: Vec<(&str, &[f32], bool)> = vec![("", self.weights(), false)];
        if let Some(adamw) = &self.adamw {
            parts.push((FIRST_MOMENT, adamw.exp_avg(), true));
            parts.push((SECOND_MOMENT, adamw.exp_avg_sq(), true));
        }
        let mut state = Vec::new();
        for (prefix, flat, trained_only) in parts {
            let entries = self.weights.layout.entries().iter();
            for entry in entries.filter(|entry| !trained_only || entry.spec.is_trained()) {
                state.push(StateView {
                    name: format!("{prefix}{}", entry.spec.name),
                    parameter: &entry.spec.name,
                    shape: &entry.spec.shape,
                    values: &flat[entry.range.clone()],
                });
            }
        }
        state
    }

    /// Fills the whole state: `fill(name, shape, values)` is called once for every tensor that [`Model::state`] lists, in
    /// that order, and writes its values. After an error the state is partly filled and must not be trained on.
    pub fn load_state<E: From<ModelError>>(
        &mut self,
        mut fill: impl FnMut(&str, &[u64], &mut [f32]) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        self.load_weights(&mut fill)?;
        let layout = &self.weights.layout;
        let Some(adamw) = &mut self.adamw else { return Ok(()) };
        let (first, second) = adamw.moments_mut();
        for (prefix, flat) in [(FIRST_MOMENT, first), (SECOND_MOMENT, second)] {
            for entry in layout.entries().iter().filter(|entry| entry.spec.is_trained()) {
                let name = format!("{prefix}{}", entry.spec.name);
                fill(&name, &entry.spec.shape, &mut flat[entry.range.clone()])?;
            }
        }
        Ok(())
    }

    /// Writes `values` over the elements from `start` on of one tensor of the state. Call [`Model::state_written`] after
    /// the last one and before computing.
    pub fn write_state(&mut self, name: &str, shape: &[u64], start: usize, values: &[f32]) -> Result<()> {
        let problem = |problem: String| ModelError::State { name: name.to_owned(), problem };
        let (parameter, moment) = if let Some(parameter) = name.strip_prefix(SECOND_MOMENT) {
            (parameter, Some(1))
        } else if let Some(parameter) = name.strip_prefix(FIRST_MOMENT) {
            (parameter, Some(0))
        } else {
            (name, None)
        };
        let entry = self.weights.layout.get(parameter)?;
        if moment.is_some() && !entry.spec.is_trained() {
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
        let flat = match (moment, &mut self.adamw) {
            (None, _) => self.weights.master.as_mut_slice(),
            (Some(_), None) => return Err(problem("the model has no optimizer".into())),
            (Some(which), Some(adamw)) => {
                let (first, second) = adamw.moments_mut();
                if which == 0 { first } else { second }
            }
        };
        flat[range].copy_from_slice(values);
        Ok(())
    }

    /// Takes what [`Model::write_state`] has written into use.
    pub fn state_written(&mut self) -> Result<()> {
        self.weights.refresh()
    }

    /// Fills the weights alone, as [`Model::load_state`] does.
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
        self.load_state(|name, shape, values| {
            let found = tensors
                .remove(name)
                .ok_or_else(|| ModelError::State { name: name.to_owned(), problem: "missing".into() })?;
            if found.len() != values.len() {
                return Err(ModelError::State {
                    name: name.to_owned(),
                    problem: format!("has {} values, but its shape is {shape:?}", found.len()),
                });
            }
            values.copy_from_slice(&found);
            Ok(())
        })?;
        match tensors.into_keys().min() {
            Some(name) => {
                Err(ModelError::State { name, problem: "the model has no tensor of this name".into() })
            }
            None => Ok(()),
        }
    }
}
