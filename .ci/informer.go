// Follows three kinds until its standard input ends, then prints what it asked for and what it has.
package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
)

type counter struct {
	inner http.RoundTripper
	mutex sync.Mutex
	count map[string]int
}

func (c *counter) RoundTrip(r *http.Request) (*http.Response, error) {
	parts := strings.Split(r.URL.Path, "/")
	verb := "list"
	query := r.URL.Query()
	if query.Get("watch") == "true" || query.Get("watch") == "1" {
		verb = "watch"
	}
	// A list in the stream of a watch is a list; the pages after the first are no lists of their own.
	if query.Get("sendInitialEvents") == "true" {
		verb = "list"
	}
	if query.Get("continue") == "" {
		c.mutex.Lock()
		c.count[verb+" "+parts[len(parts)-1]]++
		c.mutex.Unlock()
	}
	return c.inner.RoundTrip(r)
}

func main() {
	config, err := clientcmd.BuildConfigFromFlags("", os.Args[1])
	if err != nil {
		panic(err)
	}
	counts := &counter{count: map[string]int{}}
	config.Wrap(func(inner http.RoundTripper) http.RoundTripper { counts.inner = inner; return counts })
	config.QPS = -1
	factory := informers.NewSharedInformerFactoryWithOptions(
		kubernetes.NewForConfigOrDie(rest.CopyConfig(config)), 0, informers.WithNamespace("default"))
	stores := map[string]cache.Store{
		"configmaps":     factory.Core().V1().ConfigMaps().Informer().GetStore(),
		"services":       factory.Core().V1().Services().Informer().GetStore(),
		"endpointslices": factory.Discovery().V1().EndpointSlices().Informer().GetStore(),
	}
	stop := make(chan struct{})
	factory.Start(stop)
	factory.WaitForCacheSync(stop)
	io.Copy(io.Discard, os.Stdin)
	counts.mutex.Lock()
	for what, n := range counts.count {
		fmt.Println(what, n)
	}
	for kind, store := range stores {
		for _, one := range store.List() {
			object, _ := meta.Accessor(one)
			fmt.Println("object", kind, object.GetName(), object.GetResourceVersion())
		}
	}
}
