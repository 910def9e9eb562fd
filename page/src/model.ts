/** What the page knows: the picture's objects, their classes, and the object that is being made. */

export interface Polygon {
  type: "Polygon";
  coordinates: number[][][];
}

export interface MultiPolygon {
  type: "MultiPolygon";
  coordinates: number[][][][];
}

export type Geometry = Polygon | MultiPolygon;

export type Box = [x1: number, y1: number, x2: number, y2: number];

/** A point of a prompt: label 1 is on the object, 0 is on the background. */
export interface Point {
  x: number;
  y: number;
  label: 0 | 1;
}

export interface Mask {
  geometry: Geometry;
  quality: number;
  area: number;
}

/** The object that is being made. `masks` is null until the server has answered. */
export interface Draft {
  box: Box | null;
  points: Point[];
  masks: Mask[] | null;
  chosen: number;
  /** Whether all three masks were asked for. */
  three: boolean;
  /** Whether the request for it failed, so that nothing is known about its masks. */
  failed: boolean;
}

export interface Item extends Mask {
  id: number;
  classId: number;
}

export interface ObjectClass {
  id: number;
  name: string;
  color: string;
}

/** Everything that undo and redo go back and forth between. Nothing in it is ever changed. */
export interface Snapshot {
  draft: Draft | null;
  items: Item[];
  classes: ObjectClass[];
  activeClass: number;
}

/** Colours that people tell apart with any kind of colour vision (Okabe and Ito). */
export const COLORS = ["#E69F00", "#56B4E9", "#009E73", "#F0E442", "#D55E00", "#CC79A7", "#0072B2"];

export function emptySnapshot(): Snapshot {
  const classes = [{ id: 1, name: "object", color: COLORS[0] as string }];
  return { draft: null, items: [], classes, activeClass: 1 };
}

export function classOf(snapshot: Snapshot, id: number): ObjectClass {
  return snapshot.classes.find((one) => one.id === id) ?? (snapshot.classes[0] as ObjectClass);
}

/** Return the rings of a geometry: outlines and holes alike. */
export function ringsOf(geometry: Geometry): number[][][] {
  return geometry.type === "Polygon" ? geometry.coordinates : geometry.coordinates.flat();
}

/** Return the number of pixels within the outlines. Holes run the other way round or are subtracted. */
export function areaOf(geometry: Geometry): number {
  const polygons = geometry.type === "Polygon" ? [geometry.coordinates] : geometry.coordinates;
  let area = 0;
  for (const [outline, ...holes] of polygons) {
    area += ringArea(outline ?? []);
    for (const hole of holes) area -= ringArea(hole);
  }
  return area;
}

function ringArea(ring: number[][]): number {
  let twice = 0;
  for (let i = 1; i < ring.length; i++) {
    const [x1 = 0, y1 = 0] = ring[i - 1] ?? [];
    const [x2 = 0, y2 = 0] = ring[i] ?? [];
    twice += x1 * y2 - x2 * y1;
  }
  return Math.abs(twice) / 2;
}

/** Return the smallest box around a geometry, as `[x1, y1, x2, y2]`. */
export function boundsOf(geometry: Geometry): Box {
  let [x1, y1, x2, y2] = [Infinity, Infinity, -Infinity, -Infinity];
  for (const ring of ringsOf(geometry)) {
    for (const [x = 0, y = 0] of ring) {
      x1 = Math.min(x1, x);
      y1 = Math.min(y1, y);
      x2 = Math.max(x2, x);
      y2 = Math.max(y2, y);
    }
  }
  return [x1, y1, x2, y2];
}
