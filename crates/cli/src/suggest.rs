//! "Did you mean …": the closest of some known names.

/// The name most like `wrong`, if one is close enough to be what was meant.
pub fn closest<'a>(wrong: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let likeness = |name: &str| {
        let (a, b) = (wrong.to_lowercase().replace('-', "_"), name.to_lowercase().replace('-', "_"));
        // Jaro-Winkler likes common beginnings; containment catches `resnet20` for `cifar-resnet20`.
        let contained = if !a.is_empty() && (a.contains(&b) || b.contains(&a)) { 0.85 } else { 0.0 };
        let typo = if strsim::damerau_levenshtein(&a, &b) <= (a.len() / 3).clamp(1, 3) { 0.9 } else { 0.0 };
        strsim::jaro_winkler(&a, &b).max(contained).max(typo)
    };
    known
        .into_iter()
        .map(|name| (likeness(name), name))
        .filter(|(likeness, _)| *likeness >= 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}

/// A remedy: the closest name, or all of them where none is close.
pub fn remedy(wrong: &str, known: &[&str]) -> String {
    match closest(wrong, known.iter().copied()) {
        Some(name) => format!("did you mean `{name}`?"),
        None => format!("one of {}", known.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::{closest, remedy};

    #[test]
    fn misspelt_names_find_their_neighbour() {
        let known = ["resnet20", "resnet32", "mobilenetv2", "squeezenet1_1", "epochs", "learning_rate"];
        for (wrong, right) in [
            ("resnet_20", Some("resnet20")),
            ("mobilenet-v2", Some("mobilenetv2")),
            ("squeezenet", Some("squeezenet1_1")),
            ("epoch", Some("epochs")),
            ("learningrate", Some("learning_rate")),
            ("xyz", None),
            ("eopchs", Some("epochs")),
        ] {
            assert_eq!(closest(wrong, known), right, "{wrong}");
        }
        assert_eq!(remedy("xyz", &["a", "b"]), "one of a, b");
    }
}
