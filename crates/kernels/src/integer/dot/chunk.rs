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

    /// The same in chunks of at most `longest` groups.
    pub fn parts(&self, longest: usize) -> Vec<Self> {
        let mut parts: Vec<Chunk> = vec![];
        let mut first = self.first;
        for &(offset, quads) in &self.pieces {
            for done in (0..quads).step_by(longest) {
                let piece = (offset + done * QUAD, longest.min(quads - done));
                match parts.last_mut().filter(|last| last.quads() + piece.1 <= longest) {
                    Some(last) => last.pieces.push(piece),
                    None => parts.push(Chunk { first, begins: self.begins && parts.is_empty(), pieces: vec![piece] }),
                }
                first += piece.1;
            }
        }
        parts
    }
}

#[cfg(test)]
mod tests {
    use super::Chunk;

    #[test]
    fn parts_of_a_chunk_are_all_of_it() {
        let [chunk] = &Chunk::cut(&[0, 100], 5, usize::MAX)[..] else { panic!("one chunk") };
        let parts = |longest| -> Vec<_> {
            chunk.parts(longest).into_iter().map(|part| (part.first, part.begins, part.pieces)).collect()
        };
        assert_eq!(parts(10), [(0, true, vec![(0, 5), (100, 5)])]);
        assert_eq!(
            parts(3),
            [
                (0, true, vec![(0, 3)]),
                (3, false, vec![(12, 2)]),
                (5, false, vec![(100, 3)]),
                (8, false, vec![(112, 2)])
            ]
        );
        assert_eq!(parts(7), [(0, true, vec![(0, 5)]), (5, false, vec![(100, 5)])]);
    }
}
