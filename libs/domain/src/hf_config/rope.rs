//! The rotary embedding of a `config.json`: `rope_theta` and `rope_scaling` (transformers 4), or
//! `rope_parameters` (transformers 5) with both. The kind is called `rope_type`, and `type` in older files;
//! some files have both.

use serde_json::Value;

use super::keys::{Keys, shown};
use super::known::{Only, check_only};
use crate::yarn::{self, YarnSpec};

/// Base of the frequencies, and YaRN's values where the file asks for it.
pub(super) fn read(keys: &Keys<'_>) -> Result<(f64, Option<YarnSpec>), String> {
    let theta = keys.number("rope_theta", yarn::ROPE_THETA)?;
    let section = match (keys.get("rope_scaling"), keys.get("rope_parameters")) {
        (Some(scaling), Some(parameters)) if !same_settings(scaling, parameters) => {
            return Err(
                "rope_scaling and rope_parameters differ; keep the one that is meant, and set the other to null".into()
            );
        }
        (_, Some(parameters)) => Some(("rope_parameters", "rope_parameters.", parameters)),
        (Some(scaling), None) => Some(("rope_scaling", "rope_scaling.", scaling)),
        (None, None) => None,
    };
    let needs_theta = |theta: Option<f64>| theta.ok_or_else(|| keys.missing("rope_theta"));
    let Some((key, prefix, value)) = section else { return Ok((needs_theta(theta)?, None)) };
    let object = value.as_object().ok_or_else(|| keys.wrong(key, value, "an object"))?;
    let inner = Keys::new(prefix, object);
    let theta = match (theta, inner.number("rope_theta", yarn::ROPE_THETA)?) {
        (Some(outer), Some(inner_theta)) if outer != inner_theta => {
            return Err(format!(
                "rope_theta is {outer}, but {} is {inner_theta}; keep the one that is meant, and set the other to null",
                inner.name("rope_theta")
            ));
        }
        (outer, inner_theta) => needs_theta(inner_theta.or(outer))?,
    };
    check_only(&inner, &[("partial_rotary_factor", Only::One)])?;
    let yarn = match kind(&inner)? {
        "default" => None,
        "yarn" => Some(read_yarn(&inner, keys)?),
        other => {
            return Err(format!(
                "{} is \"{other}\"; only \"default\" and \"yarn\" are supported",
                inner.name("rope_type")
            ));
        }
    };
    if let Some((key, value)) = inner.unread().first() {
        let kind = if yarn.is_some() { "yarn" } else { "default" };
        return Err(format!(
            "{} is {}, which the rotary embedding \"{kind}\" does not have; if it is not needed, set it to null",
            inner.name(key),
            shown(value)
        ));
    }
    if yarn.is_some() && theta <= 1.0 {
        return Err(format!("rope_theta is {theta}; YaRN needs more than 1"));
    }
    Ok((theta, yarn))
}

/// Whether two sections say the same, `rope_theta` and nulls aside.
fn same_settings(left: &Value, right: &Value) -> bool {
    let settings = |value: &Value| {
        let mut object = value.as_object().cloned().unwrap_or_default();
        object.retain(|key, value| !value.is_null() && key != "rope_theta");
        // Both names of the kind are one key.
        if let Some(kind) = object.remove("type") {
            object.entry("rope_type").or_insert(kind);
        }
        object
    };
    settings(left) == settings(right)
}

/// The kind of rotary embedding, under either of its names.
fn kind<'a>(inner: &Keys<'a>) -> Result<&'a str, String> {
    match (inner.text("rope_type")?, inner.text("type")?) {
        (Some(new), Some(old)) if new != old => Err(format!(
            "{} is \"{new}\", but {} is \"{old}\"; they are two names of one setting",
            inner.name("rope_type"),
            inner.name("type")
        )),
        (Some(kind), _) | (None, Some(kind)) => Ok(kind),
        // transformers 5 writes the section for plain rotary embeddings, too.
        (None, None) if inner.unread().is_empty() => Ok("default"),
        (None, None) => Err(inner.missing("rope_type")),
    }
}

/// YaRN's values with the defaults of transformers, which takes 0 for "not given" in most places.
fn read_yarn(inner: &Keys<'_>, outer: &Keys<'_>) -> Result<YarnSpec, String> {
    let longest = outer.required("max_position_embeddings", 1..=u32::MAX)?;
    let given = |value: f64, default: f64| if value == 0.0 { default } else { value };
    let beta = |key, default| -> Result<f64, String> {
        let least = *yarn::BETA.start();
        match inner.number(key, 0.0..=*yarn::BETA.end())?.unwrap_or(0.0) {
            value if value > 0.0 && value < least => {
                Err(format!("{} is {value}; it must be at least {least:e}", inner.name(key)))
            }
            value => Ok(given(value, default)),
        }
    };
    let original = inner.whole("original_max_position_embeddings", 0..=u32::MAX)?.unwrap_or(0);
    Ok(YarnSpec {
        factor: inner.required_number("factor", yarn::FACTOR)?,
        original_max_position_embeddings: if original == 0 { longest } else { original },
        beta_fast: beta("beta_fast", 32.0)?,
        beta_slow: beta("beta_slow", 1.0)?,
        mscale: inner.number("mscale", yarn::MSCALE)?.unwrap_or(0.0),
        mscale_all_dim: inner.number("mscale_all_dim", yarn::MSCALE)?.unwrap_or(0.0),
        attention_factor: inner.number("attention_factor", yarn::ATTENTION_FACTOR)?,
        truncate: inner.boolean("truncate")?.unwrap_or(true),
    })
}
