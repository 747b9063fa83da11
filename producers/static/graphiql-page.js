// The key goes into the editor of headers, where it stays in this page's memory only. The schema is asked for once there
// is a key, and again when the key is another one: until then there is nothing to complain about.
const firstQuery = `# Put your API key between the quotes
# in Headers below, then run these.
# The book on the left shows what else
# there is; Ctrl-Space completes.

query Known {
  features { id name type }
  users(first: 5) { id name }
}

mutation Use {
  createUsageEvent(input: {
    userId: "124"
    featureId: "api-calls"
    delta: 1
  })
}
`;

function keyIn(headers) {
  try {
    return JSON.parse(headers).Authorization || "";
  } catch {
    return ""; // half typed
  }
}

function Page() {
  const [key, setKey] = React.useState("");
  const typing = React.useRef(0);
  const fetcher = React.useMemo(() => GraphiQL.createFetcher({ url: "graphql" }), [key]);
  const onEditHeaders = (headers) => {
    clearTimeout(typing.current);
    typing.current = setTimeout(() => setKey(keyIn(headers)), 500);
  };
  return React.createElement(GraphiQL, {
    fetcher,
    onEditHeaders,
    schema: key ? undefined : null, // null: none so far, and none is asked for
    defaultQuery: firstQuery,
    defaultEditorToolsVisibility: "headers",
    defaultHeaders: '{ "Authorization": "" }',
    shouldPersistHeaders: false,
  });
}

ReactDOM.createRoot(document.getElementById("page")).render(React.createElement(Page));
