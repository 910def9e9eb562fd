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

/** Return a number and what it counts, as "1 pixel" and "2 pixels". */
export function counted(number: number, thing: string): string {
  return `${count(number)} ${thing}${number === 1 ? "" : "s"}`;
}

/** Let the arrow keys go through a group of choices, of which only the chosen one takes the focus. */
export function useArrows(group: HTMLElement): void {
  group.addEventListener("keydown", (event) => {
    const steps: Record<string, number> = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
    const step = steps[event.key];
    const choices = [...group.querySelectorAll<HTMLElement>("[role=radio]")];
    const at = choices.indexOf(document.activeElement as HTMLElement);
    if (step === undefined || at < 0) return;
    event.preventDefault();
    choices[(at + step + choices.length) % choices.length]?.click();
  });
}
