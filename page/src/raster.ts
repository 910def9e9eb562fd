/** Turns outlines back into pixels. Outlines run along the edges of pixels, so it is exact. */
import type { Box, Geometry } from "./model";
import { boundsOf, ringsOf } from "./model";

/** Call `onRun` for each run of pixels in a row that are within the outlines: from `x1` to before `x2`. */
export function rowsOf(
  geometry: Geometry,
  width: number,
  height: number,
  onRun: (y: number, x1: number, x2: number) => void,
): void {
  const [, top, , bottom] = boundsOf(geometry);
  const first = Math.max(0, Math.floor(top));
  const rows = Math.min(height, Math.ceil(bottom)) - first;
  const crossings: number[][] = Array.from({ length: Math.max(0, rows) }, () => []);
  for (const ring of ringsOf(geometry)) addCrossings(ring, first, crossings);
  crossings.forEach((xs, row) => {
    xs.sort((a, b) => a - b);
    for (let i = 0; i + 1 < xs.length; i += 2) {
      const x1 = Math.max(0, Math.ceil((xs[i] as number) - 0.5));
      const x2 = Math.min(width, Math.ceil((xs[i + 1] as number) - 0.5));
      if (x2 > x1) onRun(first + row, x1, x2);
    }
  });
}

/** Note where a ring crosses the middle of each row. */
function addCrossings(ring: number[][], first: number, crossings: number[][]): void {
  for (let i = 1; i < ring.length; i++) {
    const [x1 = 0, y1 = 0] = ring[i - 1] ?? [];
    const [x2 = 0, y2 = 0] = ring[i] ?? [];
    const low = Math.ceil(Math.min(y1, y2) - 0.5);
    const high = Math.ceil(Math.max(y1, y2) - 0.5);
    for (let y = Math.max(low, first); y < high; y++) {
      crossings[y - first]?.push(x1 + ((y + 0.5 - y1) / (y2 - y1)) * (x2 - x1));
    }
  }
}

/** Return COCO's run lengths of an object: down each column, background first. */
export function runLengths(geometry: Geometry, width: number, height: number): number[] {
  const [left, top, right, bottom] = clipped(boundsOf(geometry), width, height);
  const boxWidth = right - left;
  const boxHeight = bottom - top;
  const mask = new Uint8Array(Math.max(0, boxWidth * boxHeight));
  rowsOf(geometry, width, height, (y, x1, x2) => {
    for (let x = x1; x < x2; x++) mask[(x - left) * boxHeight + (y - top)] = 1;
  });
  const counts: number[] = [];
  let value = 0;
  let count = 0;
  const add = (next: number, pixels: number) => {
    if (pixels === 0) return;
    if (next === value) {
      count += pixels;
    } else {
      counts.push(count);
      value = next;
      count = pixels;
    }
  };
  add(0, left * height);
  for (let column = 0; column < boxWidth; column++) {
    add(0, top);
    for (let i = column * boxHeight; i < (column + 1) * boxHeight; i++) add(mask[i] as number, 1);
    add(0, height - bottom);
  }
  add(0, (width - right) * height);
  counts.push(count);
  return counts;
}

function clipped([x1, y1, x2, y2]: Box, width: number, height: number): Box {
  return [
    Math.max(0, Math.floor(x1)),
    Math.max(0, Math.floor(y1)),
    Math.min(width, Math.ceil(x2)),
    Math.min(height, Math.ceil(y2)),
  ];
}
