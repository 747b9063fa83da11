// The key goes into the editor of headers, where it stays in this page's memory only.
ReactDOM.createRoot(document.getElementById("page")).render(
  React.createElement(GraphiQL, {
    fetcher: GraphiQL.createFetcher({ url: "graphql" }),
    defaultEditorToolsVisibility: "headers",
    defaultHeaders: '{\n  "Authorization": "YOUR API KEY"\n}',
    shouldPersistHeaders: false,
  }),
);
