//! JSON files beside the weights, and operator specifications as JSON.

use serde_json::{Map, Value as Json};
use std::path::Path;
use tersor_core::{Error, Limits, OpSpec, Result, Value};

/// Reads the file at `path` and parses it as JSON. Errors if the file cannot be read, is longer than `limits.json_bytes` bytes, or is not
/// valid JSON.
///
/// ```
/// use tersor_core::Limits;
/// let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/models/tiny-wiki/config.json");
/// let config = tersor_formats::json::read(path.as_ref(), &Limits::default()).unwrap();
/// assert_eq!(config["model_type"], "llama");
/// ```
pub fn read(path: &Path, limits: &Limits) -> Result<Json> {
    let len = std::fs::metadata(path).map_err(|e| Error::io(path, e))?.len();
    Limits::check("length of a JSON file", len, limits.json_bytes)
        .map_err(|e| e.in_tensor(&path.display().to_string()))?;
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    serde_json::from_slice(&bytes).map_err(|e| Error::format(path.display().to_string(), e.to_string()))
}

/// Returns a JSON value as indented text in UTF-8, with the keys of objects sorted and a newline at the end.
///
/// ```
/// let value = serde_json::json!({"b": 1, "a": 2});
/// assert_eq!(tersor_formats::json::to_bytes(&value), b"{\n  \"a\": 2,\n  \"b\": 1\n}\n");
/// ```
pub fn to_bytes(value: &Json) -> Vec<u8> {
    let mut text = format!("{value:#}");
    text.push('\n');
    text.into_bytes()
}

/// Returns an operator's specification as a JSON object: `kind` is a string, `shape` is `[out_features, in_features]`, `params` has the
/// parameters by name, and `parts` the specifications of the operators inside by name, as objects of this same form. `params` and `parts`
/// are left out when they are empty. [`to_spec`] is the inverse.
///
/// ```
/// use tersor_core::OpSpec;
/// use tersor_formats::json::{from_spec, to_spec};
/// let spec = OpSpec::new("grouped", [4, 8]).int("bits", 4);
/// let json = from_spec(&spec);
/// assert_eq!(json["params"]["bits"], 4);
/// assert_eq!(to_spec(&json).unwrap(), spec);
/// ```
pub fn from_spec(spec: &OpSpec) -> Json {
    let params: Map<String, Json> = spec.params.iter().map(|(k, v)| (k.clone(), from_value(v))).collect();
    let mut out = Map::new();
    out.insert("kind".into(), spec.kind.clone().into());
    out.insert("shape".into(), spec.shape.to_vec().into());
    if !params.is_empty() {
        out.insert("params".into(), params.into());
    }
    if !spec.parts.is_empty() {
        let parts: Map<String, Json> = spec.parts.iter().map(|(k, v)| (k.clone(), from_spec(v))).collect();
        out.insert("parts".into(), parts.into());
    }
    out.into()
}

/// Returns a parameter of an operator's specification as a JSON boolean, number or string. A float that is NaN or infinite, which JSON
/// lacks, becomes null.
pub fn from_value(value: &Value) -> Json {
    match value {
        Value::Bool(v) => (*v).into(),
        Value::Int(v) => (*v).into(),
        Value::Float(v) => (*v).into(),
        Value::Text(v) => v.clone().into(),
    }
}

/// Parses an operator's specification from the JSON that [`from_spec`] returns. Errors, naming the key, if `kind` or `shape` is missing or
/// of another type, a key is unknown, `params` or `parts` is no object, or a parameter is no boolean, number or string; and if operators
/// inside of operators have more than [`Registry::MAX_DEPTH`](tersor_core::Registry::MAX_DEPTH) (16) levels, of which the outermost
/// operator is the first.
pub fn to_spec(json: &Json) -> Result<OpSpec> {
    nested(json, 0)
}

fn nested(json: &Json, depth: usize) -> Result<OpSpec> {
    let bad = |what: String| Error::format("specification of an operator", what);
    if depth >= tersor_core::Registry::MAX_DEPTH {
        return Err(bad(format!("its parts are nested deeper than {} levels", tersor_core::Registry::MAX_DEPTH)));
    }
    let map = json.as_object().ok_or_else(|| bad("it is not a JSON object".into()))?;
    let kind = map.get("kind").and_then(Json::as_str).ok_or_else(|| bad("`kind` is missing or not a string".into()))?;
    let axis = |i: usize| map.get("shape")?.get(i)?.as_u64().and_then(|v| usize::try_from(v).ok());
    let two = map.get("shape").and_then(Json::as_array).is_some_and(|s| s.len() == 2);
    let shape = axis(0)
        .zip(axis(1))
        .filter(|_| two)
        .ok_or_else(|| bad("`shape` is missing or not a list of two sizes".into()))?;
    let mut spec = OpSpec::new(kind, [shape.0, shape.1]);
    for (key, value) in map {
        match (key.as_str(), value) {
            ("kind" | "shape", _) => {}
            ("params", Json::Object(params)) => {
                for (name, v) in params {
                    let v = match v {
                        Json::Number(n) if n.is_i64() => Value::Int(n.as_i64().unwrap_or_default()),
                        Json::Number(n) => Value::Float(n.as_f64().unwrap_or_default()),
                        Json::Bool(b) => Value::Bool(*b),
                        Json::String(s) => Value::Text(s.clone()),
                        _ => return Err(bad(format!("parameter `{name}` must be a number, a string, true or false"))),
                    };
                    spec.params.insert(name.clone(), v);
                }
            }
            ("parts", Json::Object(parts)) => {
                for (name, part) in parts {
                    spec.parts.insert(name.clone(), nested(part, depth + 1)?);
                }
            }
            ("params" | "parts", _) => return Err(bad(format!("`{key}` is not a JSON object"))),
            _ => return Err(bad(format!("unknown key `{key}`"))),
        }
    }
    Ok(spec)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_specification_comes_back() {
        let inner = OpSpec::new("grouped", [4, 8]).int("bits", 4).text("grid", "asym");
        let mut spec = OpSpec::new("rotated", [4, 8]).int("power", 8).part("op", inner);
        spec.params.insert("x".into(), Value::Float(0.5));
        assert_eq!(to_spec(&from_spec(&spec)).unwrap(), spec);
        for bad in [
            "[]",
            "{}",
            r#"{"kind":"a","shape":[1]}"#,
            r#"{"kind":"a","shape":[1,-2]}"#,
            r#"{"kind":"a","shape":[1,2],"more":1}"#,
            r#"{"kind":"a","shape":[1,2,3]}"#,
        ] {
            assert!(to_spec(&serde_json::from_str(bad).unwrap()).is_err(), "{bad}");
        }
        // As many levels as a registry loads, and no more.
        for (levels, fits) in [(tersor_core::Registry::MAX_DEPTH, true), (tersor_core::Registry::MAX_DEPTH + 1, false)]
        {
            let nest = |spec: OpSpec, _| OpSpec::new("b", [1, 1]).part("op", spec);
            let spec = (1..levels).fold(OpSpec::new("a", [1, 1]), nest);
            assert_eq!(to_spec(&from_spec(&spec)).is_ok(), fits, "{levels} levels");
        }
        let deep = "{\"kind\":\"a\",\"shape\":[1,1],\"parts\":{\"op\":".repeat(30) + "0" + &"}}".repeat(30);
        assert!(to_spec(&serde_json::from_str(&deep).unwrap()).is_err());
    }
}
