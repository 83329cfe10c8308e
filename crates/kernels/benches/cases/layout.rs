//! Changes of layout: images as they are read, and the first and last stage of ResNet-20; work in elements.

use super::{Case, Version, values};
use bitsmith_kernels::layout;
use bitsmith_kernels::reference::layout as naive;

struct Buffers {
    images: usize,
    channels: usize,
    pixels: usize,
    x: Vec<f32>,
    y: Vec<f32>,
}

type Move = fn(usize, usize, usize, &[f32], &mut [f32]);

impl Buffers {
    fn run(&mut self, run: Move) {
        run(self.images, self.channels, self.pixels, &self.x, &mut self.y);
    }
}

const KERNELS: [(&str, [Version<Buffers>; 2]); 2] = [
    ("layout/to channels last", [|b| b.run(layout::nchw_to_nhwc), |b| b.run(naive::nchw_to_nhwc)]),
    ("layout/to channels first", [|b| b.run(layout::nhwc_to_nchw), |b| b.run(naive::nhwc_to_nchw)]),
];

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, channels, pixels) in [("32x32x3", 3, 1024), ("32x32x16", 16, 1024), ("8x8x64", 64, 64)] {
        let setup = move |images| {
            let x = values(images * channels * pixels);
            Buffers { images, channels, pixels, y: x.clone(), x }
        };
        let work = (channels * pixels) as u64;
        cases.extend(KERNELS.map(|(kernel, versions)| Case::new(kernel, name, work, setup, versions)));
    }
    cases
}
