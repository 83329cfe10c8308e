//! Moving elements: slices, pads, joins. Generic over what is moved, so that codes move as they are.

use bitsmith_kernels::layout::{copy, copy_run, strides};

/// `ranges` holds (first index, step, count) per axis.
pub(super) fn slice<T: Copy>(dims: &[usize], ranges: &[(usize, i64, usize)], x: &[T], y: &mut [T]) {
    let strides = strides(dims);
    let out: Vec<_> = ranges.iter().map(|r| r.2).collect();
    let start = ranges.iter().zip(&strides).map(|(r, s)| r.0 * s).sum();
    let steps: Vec<_> = ranges.iter().zip(&strides).map(|(r, &s)| (r.1 as usize).wrapping_mul(s)).collect();
    copy(&out, &steps, start, x, y);
}

/// How [`pad`] finds elements outside.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Fill<T> {
    Constant(T),
    Reflect,
    Edge,
}

/// Grows (or crops) both ends of every axis by `pads`. Reflecting needs axes longer than the pads.
pub(super) fn pad<T: Copy>(dims: &[usize], pads: &[(i64, i64)], fill: Fill<T>, x: &[T], y: &mut [T]) {
    let strides = strides(dims);
    let out: Vec<usize> = dims.iter().zip(pads).map(|(&d, p)| (d as i64 + p.0 + p.1) as usize).collect();
    if out.contains(&0) {
        return;
    }
    // Per axis: where each output index reads, or nothing.
    let source = |axis: usize| -> Vec<Option<usize>> {
        let size = dims[axis] as i64;
        let at = |o: usize| {
            let i = o as i64 - pads[axis].0;
            let i = match fill {
                Fill::Edge => i.clamp(0, size - 1),
                Fill::Reflect if i < 0 => -i,
                Fill::Reflect if i >= size => 2 * (size - 1) - i,
                _ => i,
            };
            (0..size).contains(&i).then(|| i as usize * strides[axis])
        };
        (0..out[axis]).map(at).collect()
    };
    let mut maps: Vec<_> = (0..dims.len()).map(source).collect();
    let Some(last) = maps.pop() else { return y.copy_from_slice(x) };
    let rows = maps.pop().unwrap_or(vec![Some(0)]);
    // The part of a row that lies side by side in the input.
    let axis = dims.len() - 1;
    let (from, to) = (pads[axis].0.min(0).unsigned_abs() as usize, pads[axis].0.max(0) as usize);
    let run = dims[axis].saturating_sub(from).min(out[axis].saturating_sub(to));
    if let Fill::Constant(v) = fill {
        y.fill(v);
    }
    let mut index = vec![0usize; maps.len()];
    for y in y.chunks_exact_mut(rows.len() * last.len()) {
        let outer = index.iter().zip(&maps).try_fold(0, |n, (&i, map)| map[i].map(|m| n + m));
        for (row, start) in y.chunks_exact_mut(last.len()).zip(&rows) {
            let offset = outer.and_then(|outer| start.map(|start| outer + start));
            match (offset, fill) {
                (Some(offset), Fill::Constant(_)) if run > 0 => copy_run(&mut row[to..], &x[offset + from..][..run]),
                (_, Fill::Constant(_)) => {}
                // Checked when the plan was made: reflected and repeated indices lie inside.
                _ => {
                    let at = |i: &Option<usize>| offset.unwrap_or(0) + i.unwrap_or(0);
                    row.iter_mut().zip(&last).for_each(|(value, i)| *value = x[at(i)]);
                }
            }
        }
        for axis in (0..index.len()).rev() {
            index[axis] += 1;
            if index[axis] < out[axis] {
                break;
            }
            index[axis] = 0;
        }
    }
}

/// Joins along an axis: parts are `[outer, inner of its own]`.
pub(super) fn concat<T: Copy>(outer: usize, parts: &[(&[T], usize)], y: &mut [T]) {
    let width: usize = parts.iter().map(|p| p.1).sum();
    let mut at = 0;
    for (x, inner) in parts {
        for row in 0..outer {
            y[row * width + at..][..*inner].copy_from_slice(&x[row * inner..][..*inner]);
        }
        at += inner;
    }
}

/// Cuts `[outer, width]` and returns nothing but the columns `at .. at + inner`.
pub(super) fn columns<T: Copy>(outer: usize, width: usize, at: usize, inner: usize, x: &[T], y: &mut [T]) {
    for row in 0..outer {
        y[row * inner..][..inner].copy_from_slice(&x[row * width + at..][..inner]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        let x: Vec<i32> = (0..6).collect(); // 2 x 3
        let mut y = vec![0; 4];
        slice(&[2, 3], &[(1, -1, 2), (0, 2, 2)], &x, &mut y);
        assert_eq!(y, [3, 5, 0, 2]);
        let mut y = vec![0; 8];
        pad(&[2, 3], &[(0, -1), (3, 2)], Fill::Constant(9), &x, &mut y);
        assert_eq!(y, [9, 9, 9, 0, 1, 2, 9, 9]);
        let mut y = vec![0; 6];
        pad(&[2, 3], &[(1, 0), (-2, 1)], Fill::Constant(9), &x, &mut y);
        assert_eq!(y, [9, 9, 2, 9, 5, 9]);
        pad(&[2, 3], &[(0, 0), (-4, 4)], Fill::Constant(9), &x, &mut y);
        assert_eq!(y, [9; 6]);
        let mut y = vec![0; 4];
        pad(&[2, 3], &[(0, 0), (-1, 0)], Fill::Constant(9), &x, &mut y);
        assert_eq!(y, [1, 2, 4, 5]);
        let mut y = vec![0; 7];
        pad(&[3], &[(2, 2)], Fill::Reflect, &x[..3], &mut y);
        assert_eq!(y, [2, 1, 0, 1, 2, 1, 0]);
        pad(&[3], &[(2, 2)], Fill::Edge, &x[..3], &mut y);
        assert_eq!(y, [0, 0, 0, 1, 2, 2, 2]);
        let mut y = vec![0; 8];
        concat(2, &[(&x, 3), (&[7, 8], 1)], &mut y);
        assert_eq!(y, [0, 1, 2, 7, 3, 4, 5, 8]);
        let mut part = vec![0; 4];
        columns(2, 4, 2, 2, &y, &mut part);
        assert_eq!(part, [2, 7, 5, 8]);
    }
}
