//! What a model knows besides its graph, as entries of ONNX's `metadata_props`.

use bitsmith_graph::{ClassNames, Preprocess};
use serde_json::{Value, json};

use super::proto::StringStringEntryProto;

const PREPROCESS: &str = "bitsmith.preprocess";
const CLASSES: &str = "bitsmith.classes";

/// How images become input, and what outputs mean, where the file says so. Entries that make no sense are ignored: they
/// are hints.
pub fn read(entries: &[StringStringEntryProto]) -> (Option<Preprocess>, ClassNames) {
    let json = |key: &str| {
        let entry = entries.iter().find(|e| e.key.as_deref() == Some(key))?;
        serde_json::from_str::<Value>(entry.value.as_deref()?).ok()
    };
    let preprocess = json(PREPROCESS).and_then(|value| {
        let floats = |key: &str| -> Option<Vec<f32>> { value.get(key)?.as_array()?.iter().map(float).collect() };
        Some(Preprocess { scale: float(value.get("scale")?)?, mean: floats("mean")?, std: floats("std")? })
    });
    let names = |value: Value| value.as_array()?.iter().map(|name| name.as_str().map(str::to_owned)).collect();
    (preprocess, json(CLASSES).and_then(names).unwrap_or_default())
}

fn float(value: &Value) -> Option<f32> {
    Some(value.as_f64()? as f32).filter(|v| v.is_finite())
}

/// The entries that [`read`] understands.
pub fn write(preprocess: Option<&Preprocess>, classes: &[String]) -> Vec<StringStringEntryProto> {
    let entry =
        |key: &str, value: Value| StringStringEntryProto { key: Some(key.to_owned()), value: Some(value.to_string()) };
    let preprocess = preprocess.map(|p| entry(PREPROCESS, json!({"scale": p.scale, "mean": p.mean, "std": p.std})));
    let classes = (!classes.is_empty()).then(|| entry(CLASSES, json!(classes)));
    preprocess.into_iter().chain(classes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let (preprocess, classes) = (Preprocess::imagenet(), vec!["cat \"1\"".to_owned(), "dog".to_owned()]);
        assert_eq!(read(&write(Some(&preprocess), &classes)), (Some(preprocess), classes));
        assert_eq!(read(&write(None, &[])), (None, vec![]));
        let odd =
            StringStringEntryProto { key: Some(PREPROCESS.to_owned()), value: Some("{\"scale\": 1e99".to_owned()) };
        assert_eq!(read(&[odd]), (None, vec![]));
    }
}
