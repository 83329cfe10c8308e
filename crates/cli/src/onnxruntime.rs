//! ONNX Runtime as one more engine for `verify`: a Python process beside us that computes batches. Nothing else in the
//! program needs Python.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use bitsmith_formats::onnx::Target;
use bitsmith_graph::{Model, QuantModel};

use crate::engines::Runner;
use crate::failure::{Explain, Failure};

const SCRIPT: &str = include_str!("onnxruntime.py");

/// More elements than this in one answer are a broken answer.
const MAX_ANSWER: i64 = 1 << 28;

/// A running session.
pub struct OnnxRuntime {
    child: Child,
    to: Option<ChildStdin>,
    from: BufReader<ChildStdout>,
    dims: Vec<i64>,
    temporary: Option<PathBuf>,
}

impl OnnxRuntime {
    /// Opens a file that takes samples of these dimensions.
    pub fn of_file(path: &Path, dims: &[usize]) -> Result<Self, Failure> {
        Self::start(path, dims, None)
    }

    /// Exports a packed model into a temporary file and opens that.
    pub fn of_model(model: &QuantModel) -> Result<Self, Failure> {
        let path = temporary();
        bitsmith_formats::onnx::write_qdq(model, &path, Target::default())
            .context(|| format!("cannot write `{}`", path.display()))?;
        Self::start(&path, &dims(model.graph())?, Some(path.clone()))
    }

    /// The same for a float model.
    pub fn of_float(model: &Model) -> Result<Self, Failure> {
        let path = temporary();
        bitsmith_formats::onnx::write_float(model, &path, Target::default().opset)
            .context(|| format!("cannot write `{}`", path.display()))?;
        Self::start(&path, &dims(&model.graph)?, Some(path.clone()))
    }

    fn start(path: &Path, dims: &[usize], temporary: Option<PathBuf>) -> Result<Self, Failure> {
        let remedy = "install it with `pip install onnxruntime numpy`, or leave out --onnx";
        let mut child = Command::new("python3")
            .args(["-c", SCRIPT])
            .arg(path)
            .arg(rayon::current_num_threads().to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context(|| "cannot start python3, which runs ONNX Runtime".to_owned())
            .remedy(remedy)?;
        let broken = || Failure::new("cannot talk to python3");
        let to = child.stdin.take().ok_or_else(broken)?;
        let mut from = BufReader::new(child.stdout.take().ok_or_else(broken)?);
        let mut line = String::new();
        from.read_line(&mut line)?;
        let dims = dims.iter().map(|&d| i64::try_from(d).unwrap_or(i64::MAX)).collect();
        let runtime = Self { child, to: Some(to), from, dims, temporary };
        match line.trim() {
            "ready" => Ok(runtime),
            line => Err(Failure::new(line.trim_start_matches("error: ").to_owned())
                .context(format!("ONNX Runtime cannot open `{}`", path.display()))
                .remedy(remedy)),
        }
    }
}

impl Runner for OnnxRuntime {
    fn name(&self) -> &str {
        "onnxruntime"
    }

    fn logits(&mut self, x: &[f32], batch: usize) -> Result<Vec<f32>, Failure> {
        let gone = || "ONNX Runtime stopped; its message is above".to_owned();
        let mut bytes = Vec::with_capacity(64 + 4 * x.len());
        let dims = [batch as i64].into_iter().chain(self.dims.iter().copied());
        for number in [1 + self.dims.len() as i64].into_iter().chain(dims) {
            bytes.extend(number.to_le_bytes());
        }
        x.iter().for_each(|v| bytes.extend(v.to_le_bytes()));
        let to = self.to.as_mut().ok_or_else(|| Failure::new(gone()))?;
        to.write_all(&bytes).and_then(|()| to.flush()).context(gone)?;

        let mut number = || -> Result<i64, Failure> {
            let mut bytes = [0; 8];
            self.from.read_exact(&mut bytes).context(gone)?;
            Ok(i64::from_le_bytes(bytes))
        };
        let rank = number()?;
        let mut count = 1i64;
        for _ in 0..rank.clamp(0, 16) {
            count = count.saturating_mul(number()?);
        }
        if !(0..=MAX_ANSWER).contains(&count) {
            return Err(Failure::new(format!("ONNX Runtime answered with {count} numbers")));
        }
        let mut bytes = vec![0; 4 * count as usize];
        self.from.read_exact(&mut bytes).context(gone)?;
        Ok(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    }
}

impl Drop for OnnxRuntime {
    fn drop(&mut self) {
        // Closing its input ends the process. Whatever fails here has no one to tell.
        self.to = None;
        _ = self.child.wait();
        if let Some(path) = &self.temporary {
            _ = std::fs::remove_file(path);
        }
    }
}

/// Dimensions of the first input without the batch.
pub fn dims(graph: &bitsmith_graph::Graph) -> Result<Vec<usize>, Failure> {
    let input = graph.inputs().first().ok_or_else(|| Failure::new("the model has no input"))?;
    Ok(input.shape(1).into_iter().skip(1).collect())
}

fn temporary() -> PathBuf {
    use std::sync::atomic::{AtomicU32, Ordering};
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let folder = std::env::temp_dir();
    folder.join(format!("bitsmith-verify-{}-{number}.onnx", std::process::id()))
}
