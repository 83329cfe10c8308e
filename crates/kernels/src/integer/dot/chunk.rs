//! Which part of a dot product is made at a time.

use crate::integer::weights::QUAD;

/// A run of a dot product whose weights stay in the first cache while all pixels pass by.
#[derive(Debug, Clone, PartialEq)]
pub struct Chunk {
    /// Groups of four inputs before it, in the weights.
    pub first: usize,
    /// Whether a dot product begins with it.
    pub begins: bool,
    /// Where its inputs lie, the same for all pixels of a band: offset from a pixel's first code, and groups of four from there.
    pub pieces: Vec<(usize, usize)>,
}

impl Chunk {
    /// Cuts segments of `quads` groups each, which begin at `offsets`, into chunks of at most `longest` groups.
    pub fn cut(offsets: &[usize], quads: usize, longest: usize) -> Vec<Self> {
        let mut chunks: Vec<Chunk> = vec![Chunk { first: 0, begins: true, pieces: vec![] }];
        let mut room = longest;
        for (segment, &offset) in offsets.iter().enumerate() {
            let mut done = 0;
            while done < quads {
                if room == 0 {
                    chunks.push(Chunk { first: segment * quads + done, begins: false, pieces: vec![] });
                    room = longest;
                }
                let length = room.min(quads - done);
                if let Some(chunk) = chunks.last_mut() {
                    chunk.pieces.push((offset + done * QUAD, length));
                }
                (done, room) = (done + length, room - length);
            }
        }
        chunks
    }

    /// Its groups of four inputs.
    pub fn quads(&self) -> usize {
        self.pieces.iter().map(|(_, quads)| quads).sum()
    }
}
