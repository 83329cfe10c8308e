//! The one table of what is measured: every kernel, fast and naive, on sizes that ResNet-20 has.
//!
//! `benches/kernels.rs` gives it to criterion, `examples/ratios.rs` compares it with stored ratios. A new kernel is one line in
//! its family's file; a new family is a file here and a line in [`all`].

mod activation;
mod conv;
mod fakequant;
mod gemm;
mod integer;
mod layout;
mod norm;
mod pack;
mod planes;
mod pool;

/// Which version of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Fast,
    Reference,
}

/// Makes buffers for one version and so many images; what it returns is what is timed.
type Prepare = Box<dyn Fn(Side, usize) -> Box<dyn FnMut()>>;

/// One kernel on one shape.
pub struct Case {
    /// `family/kernel`.
    pub kernel: &'static str,
    /// What an image is, or whatever else the work is counted in.
    pub shape: String,
    /// Multiply-accumulates or elements of one image.
    pub work: u64,
    prepare: Prepare,
}

/// A version of a kernel over its buffers.
pub type Version<B> = fn(&mut B);

impl Case {
    /// A case whose buffers for `n` images are `setup(n)`, and whose work grows with them by `work` each.
    pub fn new<B: 'static>(
        kernel: &'static str,
        shape: impl Into<String>,
        work: u64,
        setup: impl Fn(usize) -> B + 'static,
        [fast, reference]: [Version<B>; 2],
    ) -> Case {
        let prepare = move |side: Side, images: usize| -> Box<dyn FnMut()> {
            let (mut buffers, version) = (setup(images), if side == Side::Fast { fast } else { reference });
            Box::new(move || version(&mut buffers))
        };
        Case { kernel, shape: shape.into(), work, prepare: Box::new(prepare) }
    }

    /// One version, ready to run over so many images. Allocates, and packs what the level in use wants packed: choose that
    /// before.
    pub fn prepare(&self, side: Side, images: usize) -> Box<dyn FnMut()> {
        (self.prepare)(side, images)
    }
}

/// Every case.
pub fn all() -> Vec<Case> {
    [
        conv::cases(),
        norm::cases(),
        pool::cases(),
        activation::cases(),
        gemm::cases(),
        layout::cases(),
        fakequant::cases(),
        planes::cases(),
        pack::cases(),
        integer::cases(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Numbers in -1..1 without structure.
fn values(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7919) % 1009) as f32 / 504.5 - 1.0).collect()
}
