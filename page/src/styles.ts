/** How objects, boxes and points look on the picture. */
import CircleStyle from "ol/style/Circle";
import Fill from "ol/style/Fill";
import RegularShape from "ol/style/RegularShape";
import Stroke from "ol/style/Stroke";
import Style from "ol/style/Style";

const ACCENT = "#3b82f6";
const WHITE = "#ffffff";

/** A line that is visible on bright and on dark pictures: the colour on a wider dark one. */
function line(color: string, width: number, dash?: number[]): Style[] {
  const dashes = dash === undefined ? {} : { lineDash: dash };
  return [
    new Style({ stroke: new Stroke({ color: "rgba(0,0,0,0.4)", width: width + 1.5 }) }),
    new Style({ stroke: new Stroke({ color, width, ...dashes }) }),
  ];
}

const cache = new Map<string, Style[]>();

export function itemStyle(color: string, hovered: boolean, selected: boolean): Style[] {
  const key = `${color} ${hovered} ${selected}`;
  let styles = cache.get(key);
  if (styles === undefined) {
    const alpha = hovered || selected ? "80" : "33";
    const fill = new Style({ fill: new Fill({ color: color + alpha }) });
    styles = [fill, ...line(selected ? WHITE : color, hovered || selected ? 3 : 1.5)];
    if (hovered || selected) for (const style of styles) style.setZIndex(1);
    cache.set(key, styles);
  }
  return styles;
}

export const draftStyle = [
  new Style({ fill: new Fill({ color: ACCENT + "66" }) }),
  ...line("#93c5fd", 2),
];

export const boxStyle = line(WHITE, 1.5, [6, 5]);

export function pointStyle(label: 0 | 1): Style[] {
  const circle = new CircleStyle({
    radius: 7,
    fill: new Fill({ color: label === 1 ? "#15803d" : "#b91c1c" }),
    stroke: new Stroke({ color: WHITE, width: 2 }),
  });
  // A plus and a minus, for those who do not tell green from red.
  const sign = new RegularShape({
    points: label === 1 ? 4 : 2,
    radius: 4,
    radius2: 0,
    angle: label === 1 ? 0 : Math.PI / 2,
    stroke: new Stroke({ color: WHITE, width: 1.5 }),
  });
  return [new Style({ image: circle }), new Style({ image: sign })];
}

export const crosshairStyle = [
  new Style({
    image: new RegularShape({
      points: 4,
      radius: 14,
      radius2: 0,
      stroke: new Stroke({ color: "rgba(0,0,0,0.7)", width: 5 }),
    }),
  }),
  new Style({
    image: new RegularShape({
      points: 4,
      radius: 13,
      radius2: 0,
      stroke: new Stroke({ color: WHITE, width: 2 }),
    }),
  }),
];
