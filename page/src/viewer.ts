/** Shows the picture with its objects, and hears what is drawn on it. OpenLayers does the work. */
import Feature from "ol/Feature";
import Map from "ol/Map";
import type MapBrowserEvent from "ol/MapBrowserEvent";
import View from "ol/View";
import { defaults as defaultControls } from "ol/control/defaults";
import type { Coordinate } from "ol/coordinate";
import { getCenter, type Extent } from "ol/extent";
import MultiPolygonShape from "ol/geom/MultiPolygon";
import PointShape from "ol/geom/Point";
import PolygonShape, { fromExtent } from "ol/geom/Polygon";
import DragPan from "ol/interaction/DragPan";
import MouseWheelZoom from "ol/interaction/MouseWheelZoom";
import PinchZoom from "ol/interaction/PinchZoom";
import ImageLayer from "ol/layer/Image";
import VectorLayer from "ol/layer/Vector";
import Projection from "ol/proj/Projection";
import VectorSource from "ol/source/Vector";

import { BitmapSource } from "./bitmap_source";
import type { Box, Geometry, Item, Point, Snapshot } from "./model";
import { classOf } from "./model";
import type { Picture } from "./picture";
import { PromptPointer } from "./pointer";
import { boxStyle, crosshairStyle, draftStyle, itemStyle, pointStyle } from "./styles";

export type Tool = "draw" | "move";

export interface ViewerEvents {
  box(box: Box): void;
  point(point: Point): void;
  hover(id: number | null): void;
  select(id: number | null): void;
}

/** A pixel of the screen shows at most this share of a pixel of the picture. */
const FINEST = 1 / 32;

export class Viewer {
  tool: Tool = "draw";
  /** Whether a plain click means background: for fingers, which have no right button. */
  clicksAreBackground = false;

  private readonly map: Map;
  private readonly items = new VectorSource<Feature>();
  private readonly draft = new VectorSource<Feature>();
  private readonly rubber = new VectorSource<Feature>();
  private readonly shown = new globalThis.Map<number, { item: Item; feature: Feature }>();
  private size: [number, number] = [1, 1];
  private hovered: number | null = null;
  private selected: number | null = null;
  private snapshot: Snapshot | null = null;

  constructor(
    private readonly target: HTMLElement,
    private readonly events: ViewerEvents,
  ) {
    const pointer = new PromptPointer({
      drawing: () => this.tool === "draw",
      box: (from, to, final) => this.drawn(from, to, final),
      click: (at, background) => this.clicked(at, background),
      cancel: () => this.rubber.clear(),
    });
    const pan = new DragPan({ condition: (event) => this.pans(event) });
    this.map = new Map({
      target,
      controls: defaultControls({ zoom: false, rotate: false, attribution: false }),
      interactions: [pan, new PinchZoom(), new MouseWheelZoom(), pointer],
      layers: [],
    });
    this.map.on("postrender", () => this.publish());
    this.map.on("pointermove", (event) => this.pointerMoved(event));
    this.map.on("click", (event) => {
      if (this.tool === "move") this.events.select(this.itemAt(event.coordinate));
    });
    target.addEventListener("contextmenu", (event) => event.preventDefault());
    target.addEventListener("pointerleave", () => this.events.hover(null));
  }

  /** Show another picture, without objects. */
  open(picture: Picture): void {
    const { width, height, levels } = picture;
    this.size = [width, height];
    // The picture's y goes down, OpenLayers' y goes up.
    const extent: Extent = [0, -height, width, 0];
    const projection = new Projection({ code: "pixels", units: "pixels", extent });
    const layer = (interpolate: boolean, more: object) =>
      new ImageLayer({ source: new BitmapSource(levels, extent, projection, interpolate), ...more });
    this.map.setLayers([
      layer(true, { minResolution: 0.5 }),
      layer(false, { maxResolution: 0.5 }), // close up, pixels are squares
      new VectorLayer({ source: this.items, style: (feature) => this.styleOf(feature as Feature) }),
      new VectorLayer({ source: this.draft }),
      new VectorLayer({ source: this.rubber }),
    ]);
    this.map.setView(
      new View({
        projection,
        center: getCenter(extent),
        minResolution: FINEST,
        maxResolution: Math.max(2, (4 * Math.max(width, height)) / 400),
        extent: [-width / 2, -1.5 * height, 1.5 * width, height / 2],
        constrainOnlyCenter: true,
        showFullExtent: true,
      }),
    );
    this.items.clear();
    this.shown.clear();
    this.hovered = this.selected = null;
    this.fit();
  }

  fit(): void {
    this.map.updateSize();
    const [width, height] = this.size;
    this.map.getView().fit([0, -height, width, 0], { padding: [20, 20, 84, 20] });
  }

  zoom(factor: number): void {
    const view = this.map.getView();
    view.animate({ resolution: (view.getResolution() ?? 1) / factor, duration: 120 });
  }

  /** Show the objects and the one that is being made. */
  show(snapshot: Snapshot): void {
    const recolored = this.snapshot?.classes !== snapshot.classes;
    this.snapshot = snapshot;
    this.showItems(snapshot.items, recolored);
    this.draft.clear();
    const { draft } = snapshot;
    if (draft === null) return;
    const mask = draft.masks?.[draft.chosen];
    if (mask !== undefined) this.add(this.draft, shapeOf(mask.geometry), draftStyle);
    if (draft.box !== null) this.add(this.draft, fromExtent(extentOf(draft.box)), boxStyle);
    for (const { x, y, label } of draft.points) {
      this.add(this.draft, new PointShape([x, -y]), pointStyle(label));
    }
  }

  highlight(hovered: number | null, selected: number | null): void {
    const changed = new Set([this.hovered, this.selected, hovered, selected]);
    this.hovered = hovered;
    this.selected = selected;
    for (const id of changed) if (id !== null) this.shown.get(id)?.feature.changed();
  }

  /** Show the cross of the keyboard, and the box from its first corner; null hides it. */
  showCrosshair(at: [number, number] | null, corner: [number, number] | null): void {
    this.rubber.clear();
    if (at === null) return;
    this.add(this.rubber, new PointShape([at[0], -at[1]]), crosshairStyle);
    if (corner !== null) {
      this.add(this.rubber, fromExtent(extentOf(sorted(corner, at))), boxStyle);
    }
    const view = this.map.getView();
    const [left = 0, bottom = 0, right = 0, top = 0] = view.calculateExtent();
    if (at[0] < left || at[0] > right || -at[1] < bottom || -at[1] > top) {
      view.setCenter([at[0], -at[1]]);
    }
  }

  /** Return the middle of what is visible, and how many of the picture's pixels one of the screen is. */
  middle(): { at: [number, number]; resolution: number } {
    const view = this.map.getView();
    const [x = 0, y = 0] = view.getCenter() ?? [];
    return { at: this.inside([x, y]), resolution: view.getResolution() ?? 1 };
  }

  /** Write into the page what the view shows, for programs that use the page. */
  private publish(): void {
    const view = this.map.getView();
    const [x = 0, y = 0] = view.getCenter() ?? [];
    this.target.dataset["center"] = `${x} ${-y}`;
    this.target.dataset["resolution"] = String(view.getResolution());
  }

  private showItems(items: Item[], recolored: boolean): void {
    const ids = new Set(items.map((item) => item.id));
    for (const [id, { feature }] of this.shown) {
      if (ids.has(id)) continue;
      this.items.removeFeature(feature);
      this.shown.delete(id);
    }
    const added: Feature[] = [];
    for (const item of items) {
      const old = this.shown.get(item.id);
      if (old !== undefined) {
        if (old.item.geometry !== item.geometry) old.feature.setGeometry(shapeOf(item.geometry));
        if (old.item !== item || recolored) old.feature.changed();
        old.item = item;
        continue;
      }
      const feature = new Feature(shapeOf(item.geometry));
      feature.setId(item.id);
      this.shown.set(item.id, { item, feature });
      added.push(feature);
    }
    this.items.addFeatures(added);
  }

  private styleOf(feature: Feature) {
    const id = feature.getId() as number;
    const item = this.shown.get(id)?.item;
    if (item === undefined || this.snapshot === null) return undefined;
    const { color } = classOf(this.snapshot, item.classId);
    return itemStyle(color, id === this.hovered, id === this.selected);
  }

  private add(source: VectorSource<Feature>, shape: PointShape | PolygonShape | MultiPolygonShape, style: object): void {
    const feature = new Feature(shape);
    feature.setStyle(style as never);
    source.addFeature(feature);
  }

  private pans(event: MapBrowserEvent): boolean {
    const { button } = event.originalEvent as PointerEvent;
    return this.tool === "move" || button === 1 || (event.activePointers?.length ?? 0) > 1;
  }

  private drawn(from: Coordinate, to: Coordinate, final: boolean): void {
    this.rubber.clear();
    const box = sorted(this.inside(from), this.inside(to));
    if (!final) this.add(this.rubber, fromExtent(extentOf(box)), boxStyle);
    else if (box[2] > box[0] && box[3] > box[1]) this.events.box(box);
  }

  private clicked(at: Coordinate, background: boolean): void {
    this.rubber.clear();
    const [x = 0, minusY = 0] = at;
    const [width, height] = this.size;
    if (x < 0 || minusY > 0 || x >= width || -minusY >= height) return;
    const label = background || this.clicksAreBackground ? 0 : 1;
    const [insideX, insideY] = this.inside(at);
    this.events.point({ x: insideX, y: insideY, label });
  }

  private pointerMoved(event: MapBrowserEvent): void {
    if (event.dragging) return;
    this.events.hover(this.itemAt(event.coordinate));
  }

  /** Return the smallest object at a place. */
  private itemAt(at: Coordinate): number | null {
    let best: { id: number; area: number } | null = null;
    for (const feature of this.items.getFeaturesAtCoordinate(at)) {
      const found = this.shown.get(feature.getId() as number)?.item;
      if (found !== undefined && (best === null || found.area < best.area)) best = found;
    }
    return best?.id ?? null;
  }

  /** Return the nearest place on the picture, in its pixels, to a tenth of a pixel. */
  private inside([x = 0, minusY = 0]: Coordinate): [number, number] {
    const [width, height] = this.size;
    const clamp = (value: number, most: number) =>
      Math.round(10 * Math.min(Math.max(value, 0), most)) / 10;
    return [clamp(x, width), clamp(-minusY, height)];
  }
}

function sorted(a: [number, number], b: [number, number]): Box {
  return [Math.min(a[0], b[0]), Math.min(a[1], b[1]), Math.max(a[0], b[0]), Math.max(a[1], b[1])];
}

function extentOf([x1, y1, x2, y2]: Box): Extent {
  return [x1, -y2, x2, -y1];
}

function shapeOf(geometry: Geometry): PolygonShape | MultiPolygonShape {
  const turned = (rings: number[][][]) =>
    rings.map((ring) => ring.map(([x = 0, y = 0]) => [x, -y]));
  return geometry.type === "Polygon"
    ? new PolygonShape(turned(geometry.coordinates))
    : new MultiPolygonShape(geometry.coordinates.map(turned));
}
