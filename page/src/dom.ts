/** Short ways to the elements of the page. */

export function byId<E extends HTMLElement = HTMLElement>(id: string): E {
  const element = document.getElementById(id);
  if (element === null) throw new Error(`The page has no element #${id}.`);
  return element as E;
}

export function button(id: string, onClick: () => void): HTMLButtonElement {
  const element = byId<HTMLButtonElement>(id);
  element.addEventListener("click", onClick);
  return element;
}

export function make<Name extends keyof HTMLElementTagNameMap>(
  name: Name,
  className = "",
  text = "",
): HTMLElementTagNameMap[Name] {
  const element = document.createElement(name);
  element.className = className;
  element.textContent = text;
  return element;
}

/** Return a square of a colour. A style attribute would be against the page's security policy. */
export function swatch(color: string): HTMLElement {
  const element = make("span", "swatch");
  element.style.backgroundColor = color;
  return element;
}

/** Return a number as people write it. */
export function count(value: number): string {
  return Math.round(value).toLocaleString("en-US");
}
