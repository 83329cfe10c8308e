//! Journeys that go well.

use crate::{bitsmith, json, keys, listing, ok, small_recipe};

#[test]
fn help_names_every_command_with_examples() {
    let folder = tempfile::tempdir().unwrap();
    let help = ok(folder.path(), "--help").stdout;
    for command in
        ["demo", "train", "compare", "quantize", "eval", "run", "inspect", "export", "verify", "bench", "report"]
    {
        assert!(help.contains(command), "{command} is missing from the help");
        let own = ok(folder.path(), &format!("{command} --help")).stdout;
        assert!(own.contains("Examples:") && own.contains("bitsmith"), "{command} --help has no examples");
    }
    let wrong = bitsmith(folder.path(), "inspct");
    assert_eq!(wrong.code, 2);
    assert!(wrong.stderr.starts_with("error: ") && wrong.stderr.contains("inspect"), "{}", wrong.stderr);
}

#[test]
fn a_built_in_model_can_be_inspected_without_files() {
    let folder = tempfile::tempdir().unwrap();
    let value = json(folder.path(), "inspect resnet20");
    assert_eq!(value["mean_weight_bits"], 32.0);
    assert_eq!(value["layers"].as_array().unwrap().len(), 20);
    let layer = keys(&value["layers"][0]);
    for key in ["name", "op", "weight_bits", "stored_bits", "activation_bits", "bytes", "macs", "arithmetic"] {
        assert!(layer.contains(&key), "{key} is missing");
    }
    assert!(ok(folder.path(), "inspect cnn").stdout.contains("multiply-accumulates"));
}

#[test]
fn a_recipe_becomes_a_packed_model_that_everything_else_reads() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    small_recipe(folder);
    let trained = json(folder, "train small.toml --set train.epochs=5 --out run");
    assert!(trained["mean_weight_bits"].as_f64().unwrap() <= 3.0, "{trained}");
    assert_eq!(trained["verified"], true);
    let files = listing(&folder.join("run"));
    for file in ["events.jsonl", "model.bitsmith", "model.onnx", "recipe.toml", "report.html"] {
        assert!(files.iter().any(|f| f == file), "{file} is missing among {files:?}");
    }
    assert!(std::fs::read_to_string(folder.join("run/recipe.toml")).unwrap().contains("epochs = 5"));

    let eval = json(folder, "eval run/model.bitsmith --data digits");
    assert_eq!(eval["accuracy"], trained["accuracy"]);
    for key in ["accuracy", "loss", "n"] {
        assert!(keys(&eval).contains(&key));
    }
    let inspect = json(folder, "inspect run/model.bitsmith");
    assert_eq!(inspect["bytes"].as_u64().unwrap(), std::fs::metadata(folder.join("run/model.bitsmith")).unwrap().len());
    assert!(
        (inspect["mean_weight_bits"].as_f64().unwrap() - trained["mean_weight_bits"].as_f64().unwrap()).abs() < 1e-9
    );

    let verify = json(folder, "verify run/model.bitsmith --data digits");
    assert_eq!((&verify["agree"], verify["n"].as_u64()), (&true.into(), Some(355)), "{verify}");
    assert_eq!(keys(&verify["accuracies"]), ["reference", "runtime", "simulator"]);
    let quick = json(folder, "verify run/model.bitsmith --data digits --reference 0");
    assert_eq!((&quick["agree"], keys(&quick["accuracies"])), (&true.into(), vec!["runtime", "simulator"]));

    let exported = json(folder, "export run/model.bitsmith --to onnx --target opset25 --out e.onnx");
    assert_eq!(exported["layers"].as_array().unwrap().len(), inspect["layers"].as_array().unwrap().len());
    ok(folder, "export run/model.bitsmith --to safetensors --out e.safetensors");
    ok(folder, "export run/model.bitsmith --to packed --out e.bitsmith");
    assert_eq!(
        std::fs::read(folder.join("e.bitsmith")).unwrap(),
        std::fs::read(folder.join("run/model.bitsmith")).unwrap()
    );

    let bench = json(folder, "bench run/model.bitsmith --seconds 0.05 --batch 4");
    assert_eq!(keys(&bench), ["batch", "images_per_s", "median_ms", "p99_ms", "peak_rss_mb", "threads"]);
    let report = json(folder, "report run --out page.html");
    assert_eq!(report["epochs"], 5);
    assert!(std::fs::read_to_string(folder.join("page.html")).unwrap().contains("Bits per layer"));
}

#[test]
fn the_smallest_recipe_learns_from_random_weights_with_activations_of_their_own_widths() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let recipe = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes/digits-cnn-csq.toml");
    std::fs::copy(recipe, folder.join("digits.toml")).unwrap();
    let widths = "--set train.activation_widths.target_bits=5 --set train.evaluate_every=0";
    let trained = json(folder, &format!("train digits.toml {widths} --out run"));
    assert!(trained["accuracy"].as_f64().unwrap() > 0.93, "{trained}");
    assert_eq!(trained["verified"], true);
    let inspect = json(folder, "inspect run/model.bitsmith");
    let layers = inspect["layers"].as_array().unwrap();
    let number = |layer: &serde_json::Value, key: &str| layer[key].as_f64().unwrap();
    let size = |layer: &serde_json::Value| number(layer, "macs") * number(layer, "stored_bits");
    let bits: f64 = layers.iter().map(|l| size(l) * number(l, "activation_bits")).sum();
    let mean = bits / layers.iter().map(size).sum::<f64>();
    assert!(mean <= 5.0 && mean > 4.0, "{mean} mean bits");
}

#[test]
fn quantizing_without_training_works_without_data() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let made = json(folder, "quantize cnn --method ptq --data random --weight-bits 4 --activation-bits 8 --out q");
    assert_eq!(made["verified"], true);
    let inspect = json(folder, "inspect q/model.bitsmith");
    assert_eq!(inspect["mean_weight_bits"], 4.0);
    assert!(inspect["layers"].as_array().unwrap().iter().all(|l| l["activation_bits"] == 8.0), "{inspect}");
    assert_eq!(json(folder, "inspect q"), inspect, "a run's folder stands for its model");

    let to_file = "quantize cnn --method ptq --data random --weight-bits 4 --activation-bits 8 --out small.bitsmith";
    json(folder, to_file);
    assert_eq!(
        std::fs::read(folder.join("small.bitsmith")).unwrap(),
        std::fs::read(folder.join("small/model.bitsmith")).unwrap()
    );
    let again = bitsmith(folder, to_file);
    assert!(again.code != 0 && again.stderr.contains("--force"), "{}", again.stderr);
}

#[test]
fn budgets_of_every_kind_are_met_with_and_without_training() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let profile = json(folder, "profile cnn --activation-bits 8");
    assert_eq!(
        keys(&profile),
        ["activation_bits", "batch", "cache", "layers", "measured", "other_ms", "threads", "total_ms"]
    );
    let layers = profile["layers"].as_array().unwrap();
    assert!(profile["measured"].as_u64().unwrap() > 0 && layers.iter().all(|l| l["ms"]["4"].as_f64().unwrap() > 0.0));
    let again = json(folder, "profile cnn --activation-bits 8");
    let ratio = again["total_ms"]["8"].as_f64().unwrap() / profile["total_ms"]["8"].as_f64().unwrap();
    assert!(again["measured"] == 0 && (ratio - 1.0).abs() < 1e-9, "{again}");
    assert!(std::path::Path::new(again["cache"].as_str().unwrap()).starts_with(folder.join("cache")));

    let quantize = "quantize cnn --method ptq --data digits --data-limit 200 --activation-bits 8 --force --out q";
    for (budget, limit) in [("bits=3.5", 3.5), ("bytes=9kB", 9e3), ("bops=5M", 5e6)] {
        let made = json(folder, &format!("{quantize} --budget {budget}"));
        let spent = made["budget"]["spent"].as_f64().unwrap();
        assert_eq!((made["budget"]["met"].as_bool(), made["budget"]["budget"].as_f64()), (Some(true), Some(limit)));
        assert!(spent <= limit && spent > 0.8 * limit, "{budget}: {spent}");
    }
    // Time is measured, and a machine that runs tests is busy: what the search promised is what can be held.
    small_recipe(folder);
    let total = profile["total_ms"]["8"].as_f64().unwrap();
    let train = format!("train small.toml --budget latency={}ms --set activations.bits=8 --out timed", total * 1.05);
    let trained = json(folder, &train);
    assert!(trained["budget"]["spent"].as_f64().unwrap() > 0.0, "{trained}");
    assert!(folder.join("timed/latency.json").exists());
    let recipe = std::fs::read_to_string(folder.join("timed/recipe.toml")).unwrap();
    assert!(recipe.contains("budget = \"latency=") && !recipe.contains("target_bits = 3"), "{recipe}");

    for (wrong, parts) in [
        (
            "train small.toml --budget latency=0.0001ms --set activations.bits=8 --out w",
            ["cannot be met", "allow more"],
        ),
        ("train small.toml --budget latency=1ms --out w", ["activations are in float", "activation-bits 8"]),
        ("train small.toml --budget bits=2 --set method.name=lsq --out w", ["`lsq` searches no widths", "csq"]),
        (
            "train small.toml --set budget=bits=2 --out w",
            ["both `budget` and `method.target_bits`", "leave out either"],
        ),
        ("quantize cnn --data digits --budget latncy=1ms --out w", ["no budget of `latncy`", "did you mean `latency`"]),
    ] {
        let ran = bitsmith(folder, wrong);
        assert_eq!(ran.code, 2, "{wrong}: {}", ran.stderr);
        assert!(parts.iter().all(|part| ran.stderr.contains(part)), "{wrong}: {}", ran.stderr);
    }
}

#[test]
fn kernels_keep_to_the_instruction_set_they_are_told() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    json(folder, "quantize cnn --method ptq --data random --weight-bits 3 --activation-bits 4 --out q");
    let run = |isa: &str| -> super::Ran {
        let arguments = "bench q/model.bitsmith --seconds 0.05 --json";
        super::command(folder, arguments).env("BITSMITH_ISA", isa).output().unwrap().into()
    };
    assert_eq!(run("portable").code, 0);
    let wrong = run("avx");
    assert!(wrong.code == 2 && wrong.stderr.contains("did you mean `avx2`"), "{}", wrong.stderr);
    let profile = super::command(folder, "profile cnn --json").env("BITSMITH_ISA", "portable").output().unwrap();
    assert!(super::Ran::from(profile).json()["cache"].as_str().unwrap().contains("-portable-"));
}

#[test]
fn training_steps_are_timed() {
    let folder = tempfile::tempdir().unwrap();
    let bench = json(folder.path(), "bench train --model cnn --batch 8 --seconds 0.05");
    assert_eq!(keys(&bench), ["batch", "images_per_s", "median_ms", "peak_rss_mb", "threads"]);
    assert!(bench["images_per_s"].as_f64().unwrap() > 0.0);
    for method in ["lsq --weight-bits 4", "csq --phase 1", "saq --weight-bits 3 --set train.sharpness.samples=0.5"] {
        let arguments =
            format!("bench train --model cnn --batch 8 --seconds 0.05 --activation-bits 4 --method {method}");
        assert!(json(folder.path(), &arguments)["images_per_s"].as_f64().unwrap() > 0.0, "{method}");
    }
    let profile = ok(folder.path(), "bench train --model cnn --batch 8 --seconds 0.05 --profile");
    assert!(profile.stdout.contains("conv weight gradient"), "{}", profile.stdout);
}

#[test]
fn a_grid_is_compared_and_goes_on_where_it_stopped() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    small_recipe(folder);
    let grid = "compare small.toml --methods sdq,lsq --targets 3 --seeds 1,2 --set train.epochs=3 --set method.tau=0.5 --out grid";
    let listed = ok(folder, &format!("{grid} --list")).stdout;
    assert_eq!(listed.lines().count(), 4, "{listed}");
    assert!(!folder.join("grid").exists());

    let compared = json(folder, grid);
    assert_eq!(keys(&compared), ["float_accuracy", "folder", "groups", "runs"]);
    let groups = compared["groups"].as_array().unwrap();
    assert_eq!(groups.iter().map(|g| g["label"].as_str().unwrap()).collect::<Vec<_>>(), ["sdq", "lsq"]);
    assert!(groups.iter().all(|g| g["runs"] == 2 && g["bit_operations"].as_f64().unwrap() > 0.0), "{groups:?}");
    assert!(groups[0]["mean_weight_bits"].as_f64().unwrap() <= 3.0);
    for file in ["compare.html", "accuracy-size.svg", "accuracy-bit-operations.svg", "results.json"] {
        assert!(folder.join("grid").join(file).exists(), "{file} is missing");
    }
    let page = std::fs::read_to_string(folder.join("grid/compare.html")).unwrap();
    assert!(page.contains("<svg") && page.contains("sdq") && page.contains("bitsmith compare small.toml"));

    // Runs that are there are read, not made again; what is missing is made.
    let before = std::fs::read(folder.join("grid/sdq-3-seed1/events.jsonl")).unwrap();
    std::fs::remove_dir_all(folder.join("grid/lsq-3-seed2")).unwrap();
    assert_eq!(json(folder, grid)["groups"].as_array().unwrap().len(), 2);
    assert_eq!(std::fs::read(folder.join("grid/sdq-3-seed1/events.jsonl")).unwrap(), before);
    assert!(folder.join("grid/lsq-3-seed2/model.bitsmith").exists());

    let other = bitsmith(folder, &grid.replace("epochs=3", "epochs=4"));
    assert!(
        other.code != 0 && other.stderr.contains("another recipe") && other.stderr.contains("--force"),
        "{other:?}"
    );
    // An option goes to the methods that have it.
    let recipe = |run: &str| std::fs::read_to_string(folder.join("grid").join(run).join("recipe.toml")).unwrap();
    assert!(recipe("sdq-3-seed1").contains("tau = 0.5") && !recipe("lsq-3-seed1").contains("tau"));
    let wrong = bitsmith(folder, "compare small.toml --methods sdq,lsq --set method.taw=2");
    assert!(wrong.code == 2 && wrong.stderr.contains("no method of lsq, sdq has this option"), "{}", wrong.stderr);
    assert!(wrong.stderr.contains("did you mean `tau`"), "{}", wrong.stderr);

    let wrong = bitsmith(folder, "compare small.toml --methods sqd");
    assert!(wrong.code == 2 && wrong.stderr.contains("did you mean `sdq`"), "{}", wrong.stderr);
}

#[test]
fn the_demo_tells_its_story_by_another_method() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let made = json(folder, "demo --method sdq --saq --out sdq");
    assert!(made["accuracy"].as_f64().unwrap() >= 0.95 && made["verified"] == true, "{made}");
    assert!(made["mean_weight_bits"].as_f64().unwrap() <= 2.2, "{made}");
    let wrong = bitsmith(folder, "demo --method float");
    assert!(wrong.code == 2 && wrong.stderr.contains("float"), "{}", wrong.stderr);
}
